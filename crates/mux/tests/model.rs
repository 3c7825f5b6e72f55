//! Two joined cores against a reference: bytes come once and in order, ends are true, credit is kept, nothing is
//! forgotten.

use anyproxy_mux::model;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn m19_joined_cores_agree_with_the_reference(script in prop::collection::vec(any::<u8>(), 0..2_000)) {
        model::play(&script);
    }
}
