//! What a login costs, and that it costs the same whoever the user claims to be.

use std::hint::black_box;

use anyproxy_auth::{Accounts, AuthLayer, LockoutLayer, PasswordHash, User, Verify, hash_password};
use anyproxy_core::{Credentials, Dial, Front, GatewayStack as _, Login};
use criterion::{Criterion, criterion_group, criterion_main};
use tower::ServiceBuilder;

fn login(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let plain = (0..1000).map(|n| User::plain(format!("user{n}"), "secret"));
    let hash = PasswordHash::parse(&hash_password(&"secret".into())).expect("a hash made here");
    let plain = Verify::new(Accounts::new(plain).expect("valid users"));
    let hashed = Verify::new(Accounts::new([User::hashed("bob", hash)]).expect("valid users"));

    let mut group = c.benchmark_group("plain");
    for (name, username, password) in [
        ("right", "user7", "secret"),
        ("wrong_first_byte", "user7", "Xecret"),
        ("wrong_last_byte", "user7", "secreX"),
        ("unknown_user", "nobody", "secret"),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| runtime.block_on(plain.verify(black_box(Credentials::new(username, password)))));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("argon2id");
    for (name, username, password) in
        [("remembered", "bob", "secret"), ("wrong", "bob", "wrong"), ("unknown_user", "nobody", "secret")]
    {
        if name != "remembered" {
            group.sample_size(20);
        }
        group.bench_function(name, |b| {
            b.iter(|| runtime.block_on(hashed.verify(black_box(Credentials::new(username, password)))));
        });
    }
    group.finish();

    let stack = ServiceBuilder::new().layer(LockoutLayer::default()).layer(AuthLayer::new(plain)).service_fn(
        async |_: Dial| Ok::<_, std::io::Error>(tokio::io::BufReader::new(tokio::io::duplex(64).0)),
    );
    let source = "192.0.2.1:4000".parse().expect("an address");
    c.bench_function("lockout_and_auth", |b| {
        b.iter(|| {
            let credentials = Some(Credentials::new("user7", "secret"));
            runtime.block_on(stack.login(black_box(Login::new(credentials, source, Front::HTTP))))
        });
    });
}

criterion_group!(benches, login);
criterion_main!(benches);
