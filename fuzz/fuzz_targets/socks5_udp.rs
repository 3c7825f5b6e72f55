#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| anyproxy_socks5::proto::fuzz_udp(input));
