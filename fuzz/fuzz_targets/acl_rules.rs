#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| anyproxy_acl::fuzz(data));
