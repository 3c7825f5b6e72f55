#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| anyproxy_frame::oracle::check_message(message));
