//! Users who write the bytes by hand: what no well-behaved program shows.

use std::io::ErrorKind;

use anyproxy_tests::{
    HttpTarget, Options, RefusingTarget, Result, SilentTarget, Stage, Target, Way, head, socks5_reply, tunnel,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// `user:pass:w0rd`.
const LOGIN: &str = "Proxy-Authorization: Basic dXNlcjpwYXNzOncwcmQ=\r\n";

/// The head of the HTTP front's answer to `request`, and the connection behind it.
async fn ask(stage: &Stage, request: &str) -> Result<(String, TcpStream)> {
    let mut stream = TcpStream::connect(stage.http_addr()).await?;
    stream.write_all(request.as_bytes()).await?;
    Ok((head(&mut stream).await?, stream))
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_who_shows_no_login_is_challenged_once_in_either_form() -> Result {
    let stage = Stage::start()?;
    for request in [
        "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n",
        "GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n",
    ] {
        let (head, _) = ask(&stage, request).await?;
        assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
        let challenges = head.lines().filter(|line| line.to_lowercase().starts_with("proxy-authenticate:"));
        let challenges: Vec<_> = challenges.filter_map(|line| line.split_once(": ")).collect();
        assert_eq!(challenges.len(), 1, "{head}");
        assert_eq!(challenges[0].1, "Basic realm=\"AnyProxy\", charset=\"UTF-8\"");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_credentials_that_are_none_are_refused_politely() -> Result {
    let stage = Stage::start()?;
    let long = format!("Basic {}", "A".repeat(60 << 10));
    for value in ["Bearer dXNlcjpwYXNzOncwcmQ=", "Basic dXNlcg==", "Basic %%%", "Basic /////w==", &long] {
        let request =
            format!("CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: {value}\r\n\r\n");
        let (head, _) = ask(&stage, &request).await?;
        let code = head.split(' ').nth(1).unwrap_or_default();
        assert!(["407", "400", "431"].contains(&code), "{value:.40}: {head}");
    }
    let twice = format!("CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n{LOGIN}{LOGIN}\r\n");
    assert!(ask(&stage, &twice).await?.0.starts_with("HTTP/1.1 400 "));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_in_http_1_0_is_served() -> Result {
    let (stage, target) = (Stage::start()?, Target::echo().await?);
    let request = format!("CONNECT {} HTTP/1.0\r\n{LOGIN}\r\n", target.addr());
    let (head, mut stream) = ask(&stage, &request).await?;
    assert!(head.contains(" 200 "), "{head}");
    stream.write_all(b"as netcat sends it").await?;
    let mut back = [0; 18];
    stream.read_exact(&mut back).await?;
    assert_eq!(&back, b"as netcat sends it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h15_bytes_right_behind_a_connect_arrive_once_and_in_order() -> Result {
    let (stage, target) = (Stage::start()?, Target::echo().await?);
    let request = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n{LOGIN}\r\nhello", target.addr());
    let (head, mut stream) = ask(&stage, &request).await?;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let fields = head.to_lowercase();
    assert!(!fields.contains("content-length:") && !fields.contains("transfer-encoding:"), "{head}");
    stream.write_all(b", and more").await?;
    stream.shutdown().await?;
    let mut back = String::new();
    stream.read_to_string(&mut back).await?;
    assert_eq!(back, "hello, and more");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s8_each_failure_at_the_far_end_has_its_reply() -> Result {
    let mut stage = Stage::with(&Options {
        client: "  connect_timeout: 1s\n  forbidden_hosts: ['localhost:22']".to_owned(),
        gateway: "  limits: { wait_for_client: 100ms }".to_owned(),
        ..Options::default()
    })?;
    let refusing = RefusingTarget::start()?;
    let refused = refusing.addr().port().to_be_bytes();
    let silent = SilentTarget::start().await?;
    let name =
        |name: &str, port: u16| [&[1, 0, 3, name.len() as u8], name.as_bytes(), &port.to_be_bytes()].concat();
    let cases = [
        ("refused", [&[1, 0, 1, 127, 0, 0, 1][..], &refused].concat(), 5),
        ("no such name", name("does-not-exist.invalid", 80), 4),
        ("silent", [&[1, 0, 1, 127, 0, 0, 1][..], &silent.addr().port().to_be_bytes()].concat(), 6),
        ("denied", name("localhost", 22), 2),
        ("link-local", vec![1, 0, 1, 169, 254, 169, 254, 0, 80], 2),
        ("BIND", vec![2, 0, 1, 127, 0, 0, 1, 0, 80], 7),
        ("address type", vec![1, 0, 9, 127, 0, 0, 1, 0, 80], 8),
    ];
    for (what, request, code) in cases {
        assert_eq!(socks5_reply(&stage, &request).await?.0, code, "{what}");
    }
    stage.client.kill()?;
    assert_eq!(socks5_reply(&stage, &name("localhost", 80)).await?.0, 3, "no client");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s11_a_server_that_speaks_first_is_heard_without_a_byte_from_the_user() -> Result {
    let stage = Stage::start()?;
    let server = Target::start(|mut connection| async move {
        connection.write_all(b"220 ready\r\n").await?;
        connection.read_u8().await.map(drop)
    });
    let server = server.await?;
    for way in Way::ALL {
        let mut stream = tunnel(&stage, way, server.addr()).await?;
        let mut banner = [0; 11];
        stream.read_exact(&mut banner).await?;
        assert_eq!(&banner, b"220 ready\r\n", "{way:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_each_direction_ends_on_its_own() -> Result {
    const LENGTH: usize = 1 << 20;
    let stage = Stage::start()?;
    // Answers only when the user has said everything.
    let patient = Target::start(|mut connection| async move {
        let mut asked = Vec::new();
        connection.read_to_end(&mut asked).await?;
        connection.write_all(HttpTarget::hash_of(&asked).as_bytes()).await
    });
    // Says everything at once, and only then hears the user, of whom it reports to the next one.
    let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
    let hasty = Target::start(move |mut connection| {
        let heard = heard.clone();
        async move {
            connection.write_all(b"all there is").await?;
            connection.shutdown().await?;
            let mut said = Vec::new();
            connection.read_to_end(&mut said).await?;
            heard.send(HttpTarget::hash_of(&said)).map_err(std::io::Error::other)
        }
    });
    let (patient, hasty, bytes) = (patient.await?, hasty.await?, HttpTarget::bytes(LENGTH));
    for way in Way::ALL {
        let mut stream = tunnel(&stage, way, patient.addr()).await?;
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert_eq!(answer, HttpTarget::hash(LENGTH), "{way:?}");

        let mut stream = tunnel(&stage, way, hasty.addr()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert_eq!(answer, "all there is", "{way:?}");
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        assert_eq!(hearing.recv().await.as_deref(), Some(&*HttpTarget::hash(LENGTH)), "{way:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_a_target_s_reset_is_never_shown_as_an_end() -> Result {
    let stage = Stage::start()?;
    let target = Target::start(|mut connection| async move {
        connection.write_all(b"half").await?;
        // What the user said is unread when the connection goes: the system resets it.
        connection.peek(&mut [0]).await.map(drop)
    });
    let target = target.await?;
    for way in Way::ALL {
        let mut stream = tunnel(&stage, way, target.addr()).await?;
        stream.write_all(b"never read").await?;
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer).await;
        assert_eq!(ended.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset), "{way:?}");
    }
    Ok(())
}
