#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| anyproxy_mux::model::play(script));
