//! What it costs to write and to read frames.

use std::hint::black_box;

use anyproxy_frame::{Frame, Frames, HostRef, Open, StreamFrame, StreamId, ToClient};
use bytes::{Bytes, BytesMut};
use criterion::{Criterion, criterion_group, criterion_main};

fn codec(c: &mut Criterion) {
    let mut open = Open::tcp(HostRef::Name("target.example".into()), 443);
    open.user = "alice".into();
    open.groups = vec!["blue".into()];
    open.front = "socks5".into();
    let frames = [
        ("data_64", ToClient::stream(StreamId::FIRST, StreamFrame::Data(Bytes::from_static(&[7; 64])))),
        ("data_64k", ToClient::stream(StreamId::FIRST, StreamFrame::Data(Bytes::from(vec![7; 64 * 1024])))),
        ("window", ToClient::stream(StreamId::FIRST, StreamFrame::Window(65_536))),
        ("open", ToClient::Open(StreamId::FIRST, Box::new(open))),
    ];
    let mut group = c.benchmark_group("frame");
    for (name, frame) in frames {
        let mut head = BytesMut::with_capacity(1024);
        group.bench_function(format!("write/{name}"), |b| {
            b.iter(|| {
                head.clear();
                black_box(frame.clone().encode_head(&mut head))
            });
        });
        let mut message = BytesMut::new();
        frame.encode(&mut message);
        let message = message.freeze();
        group.bench_function(format!("read/{name}"), |b| {
            b.iter(|| Frames::<ToClient>::new(message.clone()).map(|mut frames| black_box(frames.next())));
        });
    }
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
