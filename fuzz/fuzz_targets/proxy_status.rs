#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| anyproxy_http::fuzz::proxy_status(data));
