//! What the core costs, without IO: two joined multiplexers, frames handed over as they are.

use std::{hint::black_box, time::Instant};

use anyproxy_mux::{
    Client, Config, Event, Gateway, Mux,
    frame::{ClientHello, GatewayHello, HostRef, Open, OpenOk, StreamId},
};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

struct Pair {
    now: Instant,
    gateway: Mux<Gateway>,
    client: Mux<Client>,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let mut pair =
            Self { now, gateway: Mux::new(Config::default(), now), client: Mux::new(Config::default(), now) };
        pair.client.hello(ClientHello::new("bench", 1)).expect("fits");
        pair.exchange();
        pair.gateway.hello(GatewayHello::new(1)).expect("fits");
        pair.exchange();
        pair
    }

    /// Moves frames until none is left; what is received is read at once.
    fn exchange(&mut self) {
        loop {
            let mut moved = false;
            while let Some(frame) = self.gateway.poll_transmit(self.now) {
                self.client.handle_frame(self.now, frame).expect("honest");
                moved = true;
            }
            while let Some(event) = self.client.poll_event() {
                match event {
                    Event::Opened { id, .. } => self.client.accept(id, OpenOk::default()),
                    Event::Data { id, data } => self.client.consumed(id, black_box(data).len() as u32),
                    _ => {}
                }
            }
            while let Some(frame) = self.client.poll_transmit(self.now) {
                self.gateway.handle_frame(self.now, frame).expect("honest");
                moved = true;
            }
            while let Some(event) = self.gateway.poll_event() {
                if let Event::Data { id, data } = event {
                    self.gateway.consumed(id, black_box(data).len() as u32);
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn open(&mut self) -> StreamId {
        let open = Open::tcp(HostRef::Name("target.example".into()), 443);
        let id = self.gateway.open(open).expect("room");
        self.exchange();
        id
    }
}

fn sessions(c: &mut Criterion) {
    let mut group = c.benchmark_group("mux");
    for streams in [1, 16] {
        let mut pair = Pair::new();
        let ids: Vec<_> = (0..streams).map(|_| pair.open()).collect();
        let chunk = Bytes::from(vec![7; 1 << 20]);
        group.throughput(Throughput::Bytes(streams << 20));
        group.bench_function(format!("bulk/{streams}"), |b| {
            b.iter(|| {
                ids.iter().for_each(|&id| pair.client.send(id, chunk.clone()));
                pair.exchange();
            });
        });
    }
    group.throughput(Throughput::Elements(1));
    let mut pair = Pair::new();
    let id = pair.open();
    let message = Bytes::from_static(&[7; 64]);
    group.bench_function("round_trip_64", |b| {
        b.iter(|| {
            pair.gateway.send(id, message.clone());
            pair.exchange();
            pair.client.send(id, message.clone());
            pair.exchange();
        });
    });
    group.bench_function("open_and_close", |b| {
        b.iter_batched(
            || (),
            |()| {
                let id = pair.open();
                pair.gateway.finish(id);
                pair.client.finish(id);
                pair.exchange();
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, sessions);
criterion_main!(benches);
