#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| anyproxy_tunnel::fuzz(input));
