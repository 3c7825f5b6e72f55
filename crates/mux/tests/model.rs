//! Two joined cores against a reference: bytes come once and in order, ends are true, credit is kept, nothing is
//! forgotten.

use std::fs;

use anyproxy_mux::model;
use proptest::prelude::*;

#[test]
fn committed_corpus_keeps_the_model() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/mux_session");
    let entries: Vec<_> = fs::read_dir(corpus).unwrap().collect();
    assert!(!entries.is_empty());
    for entry in entries {
        model::play(&fs::read(entry.unwrap().path()).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn m19_joined_cores_agree_with_the_reference(script in prop::collection::vec(any::<u8>(), 0..2_000)) {
        model::play(&script);
    }
}
