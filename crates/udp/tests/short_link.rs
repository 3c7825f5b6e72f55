//! A link that is too short for what is sent: rows are refused there, their datagrams pass in fragments.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::env::current_exe;
use std::process::Command;

use anyproxy_udp::{Burst, Way};
use tokio::net::UdpSocket;

#[test]
fn what_does_not_pass_as_a_row_passes_one_by_one() {
    // A loopback of this test's own, with packets of at most 1,000 bytes.
    let mut command = Command::new("unshare");
    command.args([
        "--map-root-user",
        "--net",
        "sh",
        "-c",
        "ip link set lo mtu 1000 up && exec \"$0\" \"$@\"",
    ]);
    command.arg(current_exe().unwrap()).args(["--ignored", "--exact", "behind_a_short_link"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
}

#[tokio::test]
#[ignore = "the test above runs it where it is meant to run"]
async fn behind_a_short_link() {
    let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let way = Way::to(receiver.local_addr().unwrap());
    for round in 0..2 {
        let mut burst = Burst::take();
        for number in 0..4 {
            burst.begin().extend_from_slice(&[number; 1_400]);
            burst.commit();
        }
        let sent = burst.send(&sender, &way).await;
        assert_eq!((sent.datagrams, sent.bytes), (4, 5_600), "{round}: {sent:?}");
        assert!(sent.error.is_none(), "{round}: {sent:?}");
        for number in 0..4 {
            let mut buf = [0; 2_000];
            let length = receiver.recv(&mut buf).await.unwrap();
            assert_eq!(buf[..length], [number; 1_400]);
        }
    }
}
