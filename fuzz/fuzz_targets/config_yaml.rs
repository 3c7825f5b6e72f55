#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anyproxy_config::fuzz(bytes));
