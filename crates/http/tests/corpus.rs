//! What the fuzz targets check, on their corpora and on random bytes.

use proptest::prelude::*;

type Check = fn(&[u8]);

#[test]
fn the_corpora_hold() {
    let checks: [(&str, Check); 2] =
        [("http_head", anyproxy_http::fuzz::http_head), ("proxy_status", anyproxy_http::fuzz::proxy_status)];
    for (name, check) in checks {
        let folder = format!("{}/../../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            check(&std::fs::read(file).unwrap());
        }
    }
}

proptest! {
    #[test]
    fn chunks_mean_the_same_in_any_pieces(wire in "[\\x00-\\x20][0-9a-f]{1,2}[; x]{0,3}\r\n[a-z\r\n0]{0,40}") {
        anyproxy_http::fuzz::http_head(wire.as_bytes());
    }

    #[test]
    fn heads_end_where_they_end(head in "[\\x00-\\x20]HTTP/1.1 200 [a-z]{0,3}\r\n([A-Za-z-]{1,8}: ?[a-z0-9, ]{0,8}\r?\n){0,4}\r\n[a-z]{0,8}") {
        anyproxy_http::fuzz::http_head(head.as_bytes());
    }

    #[test]
    fn any_text_comes_back_from_proxy_status(text in any::<Vec<u8>>()) {
        anyproxy_http::fuzz::proxy_status(&text);
    }
}
