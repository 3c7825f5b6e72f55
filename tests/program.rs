//! The program's own commands, its files, its log.

use std::fs::{File, Permissions};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyproxy_tests::{
    HttpTarget, Options, Output, PASSWORD, Program, RefusingTarget, Result, Stage, Target, USER, Way, head,
    run, tool, tunnel,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Runs the program to its end.
async fn anyproxy(arguments: &[&str]) -> Result<Output> {
    run(Program::command(arguments)?).await
}

/// Runs curl through `proxy`.
async fn curl(proxy: &str, arguments: &[&str]) -> Result<Output> {
    let mut curl = tool("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--proxy", proxy]).args(arguments);
    run(curl).await
}

/// A folder with a certificate in `certs`, and `file.yaml` in it.
async fn folder(text: &str) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let certs = dir.path().join("certs").display().to_string();
    anyproxy(&["cert", "--out", &certs, "localhost", "127.0.0.1"]).await?.ok()?;
    std::fs::write(dir.path().join("file.yaml"), text)?;
    Ok(dir)
}

/// Runs the program on `file.yaml` of `dir`, in `dir`.
async fn on_file(dir: &Path, command: &str, more: &[&str]) -> Result<Output> {
    let mut program = Program::command(&[&[command, "--config", "file.yaml"], more].concat())?;
    program.current_dir(dir);
    run(program).await
}

/// Of `change-me`.
const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$iTP5x42ewVbdAJT+7s32uQ$XzBV0ZMqEwoBruQWJb23hQTh4CvxrCcMdxGjNoP3wkQ";

/// A gateway's section that is complete.
const GATEWAY: &str = "gateway:
  listen_addr: 127.0.0.1:0
  tls_cert: certs/server.crt
  tls_key: certs/server.key
  auth_username: gateway_user
  auth_password: gateway_password
";

// === check ===

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_the_readme_are_accepted_as_they_stand() -> Result {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme)?;
    let files: Vec<_> =
        readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(files.len(), 3, "the README shows a gateway's file, a client's, and one with everything");
    for text in files {
        let dir = folder(text).await?;
        // What the last one names beside.
        for (from, to) in [("crt", "clients.crt"), ("crt", "client.crt"), ("key", "client.key")] {
            let certs = dir.path().join("certs");
            std::fs::copy(certs.join(format!("server.{from}")), certs.join(to))?;
        }
        std::fs::write(dir.path().join("east.password"), "secret\n")?;
        std::fs::write(dir.path().join("users.htpasswd"), format!("carol:{HASH}\n"))?;
        let output = on_file(dir.path(), "check", &[]).await?;
        assert_eq!((output.code, &*output.out, &*output.err), (0, "file.yaml: ok\n", ""), "{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_where_a_mistake_is_and_what_was_meant() -> Result {
    for (text, said) in [
        (
            "proxy:\n  http: { listen_adr: ':8080' }\n",
            ":2:11: unknown key \"listen_adr\", did you mean \"listen_addr\"?",
        ),
        ("porxy: {}\n", ":1:1: unknown key \"porxy\", did you mean \"proxy\"?"),
        (
            "proxy:\n  http: { allow_anonymous:true }\n",
            ":2:11: a space is missing behind \"allow_anonymous:\"",
        ),
        ("log:\n  level: inof\n", ":2:10: unknown value \"inof\", did you mean \"info\"?"),
        ("proxy:\n  http:\n    listen_addr: nowhere\n", ":3:18: "),
        ("gateway:\n  drain_timeout: 5 parsecs\n", ":2:18: "),
        (
            "proxy:\n  http: { listen_addr: '127.0.0.1:8080', handshake_timeout: 0s }\n",
            ":2:9: handshake_timeout is 0, which leaves no time at all",
        ),
        (
            "proxy:\n  http:\n    listen_addr: ':8080'\n    users:\n      - { username: bob, password: '' }\n",
            ":5:9: password is empty",
        ),
        ("client:\n  forbidden_hosts:\n    - 10.0.0.0/8\n    - 10.0.0.0/99\n", ":4:7: "),
        ("log: { level: info }\nlog: { level: info }\n", ":2:1: "),
        ("proxy: {\n", ":"),
        ("proxy:\n  http: { listen_addr: ':8080' }\ngateway: {}\n", "file.yaml"),
        ("", ": neither \"gateway\" nor \"client\""),
        ("proxy:\n  http: { listen_addr: '127.0.0.1:0' }\n", ": neither \"gateway\" nor \"client\""),
    ] {
        let dir = folder(text).await?;
        let output = on_file(dir.path(), "check", &[]).await?;
        assert_eq!((output.code, &*output.out), (1, ""), "{text}: {output:?}");
        assert_eq!(output.err.lines().count(), 1, "{text}: {output:?}");
        assert!(
            output.err.contains(&format!("file.yaml{}", said.trim_start_matches("file.yaml"))),
            "{output:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_is_none_is_told_so() -> Result {
    for arguments in [&["check"][..], &[], &["serve"], &["gateway", "--port", "1"], &["cert", "--out", "x"]] {
        let output = anyproxy(arguments).await?;
        assert_eq!((output.code, &*output.out), (2, ""), "{arguments:?}: {output:?}");
        assert!(output.err.contains("Usage: anyproxy"), "{arguments:?}: {output:?}");
    }
    let dir = tempfile::tempdir()?;
    let certs = dir.path().join("certs").display().to_string();
    for name in ["", "a b"] {
        let output = anyproxy(&["cert", "--out", &certs, "localhost", name]).await?;
        assert_eq!((output.code, &*output.out), (2, ""), "{name}: {output:?}");
        assert!(output.err.contains("a certificate can hold") && !Path::new(&certs).exists(), "{output:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_refuses_what_could_not_work() -> Result {
    for (key, said) in [
        ("ping_interval: 500ms", "gateway: ping_interval is below 1s"),
        ("ping_interval: 0s", "gateway: ping_interval is below 1s"),
        ("ping_timeout: 0s", "gateway: ping_timeout is 0"),
        ("connect_timeout: 0s", "gateway: connect_timeout is 0"),
        ("handshake_timeout: 0s", "gateway: handshake_timeout is 0"),
        ("busy_poll: 1001us", "gateway: busy_poll is above 1ms"),
        ("limits: { bandwidth: { down: 0 } }", "gateway.limits.bandwidth of 0: nothing could travel"),
        ("limits: { bandwidth: { key: user } }", "gateway.limits.bandwidth has neither up nor down"),
        ("auth_password_file: secret.txt", "gateway: give either auth_password or auth_password_file"),
    ] {
        let dir = folder(&format!("{GATEWAY}  {key}\n")).await?;
        let output = on_file(dir.path(), "check", &[]).await?;
        assert_eq!((output.code, &*output.out), (1, ""), "{key}: {output:?}");
        assert!(output.err.contains(&format!("file.yaml: {said}")), "{key}: {output:?}");
    }
    let client =
        "client: { gateway_addr: 'a:1', gateway_tls_cert: certs/server.crt, client_id: a, auth_username: a,
  auth_password: a, limit: [ { name: web, addr: localhost } ] }\n";
    for (text, said) in [
        (client.to_owned(), ":2:49: a service of limit needs a port"),
        (
            format!("proxy:\n  sni: {{ listen_addr: '127.0.0.1:0', hosts: ['a.example:8443'] }}\n{GATEWAY}"),
            ":2:46: names are dialled on the front's port",
        ),
    ] {
        let output = on_file(folder(&text).await?.path(), "check", &[]).await?;
        assert!(output.code == 1 && output.err.contains(said), "{said}: {output:?}");
    }
    for key in ["ping_interval: 1s", "busy_poll: 1ms", "busy_poll: 0"] {
        let dir = folder(&format!("{GATEWAY}  {key}\n")).await?;
        assert_eq!(on_file(dir.path(), "check", &[]).await?.code, 0, "{key}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_is_no_text_is_refused_by_its_name() -> Result {
    let dir = folder(GATEWAY).await?;
    for (name, code) in [("ANYPROXY_GATEWAY__AUTH_PASSWORD", 1), ("ANOTHER_S", 0)] {
        let mut program = Program::command(&["check", "--config", "file.yaml"])?;
        program.current_dir(dir.path()).env(name, std::ffi::OsStr::from_bytes(b"caf\xe9"));
        let output = run(program).await?;
        assert_eq!(output.code, code, "{output:?}");
        assert!(code == 0 || output.err.contains(&format!("{name}: its value is not UTF-8")), "{output:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_hears_is_a_failure_and_no_panic() -> Result {
    let dir = folder(GATEWAY).await?;
    let file = dir.path().join("file.yaml").display().to_string();
    for arguments in [&["completions", "bash"][..], &["check", "--config", &file]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
        let status = std::process::Command::new(Program::path()?)
            .args(arguments)
            .current_dir(dir.path())
            .stdout(full)
            .stderr(Stdio::null())
            .status()?;
        assert_eq!(status.code(), Some(1), "{arguments:?}");
    }
    // Nor is a failure that nobody hears of.
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full");
    let missing = std::process::Command::new(Program::path()?)
        .args(["check", "--config", "/nowhere"])
        .stdout(full()?)
        .stderr(full()?)
        .status()?;
    assert_eq!(missing.code(), Some(1));
    Ok(())
}

// === cert, hash-password, completions, explain ===

#[tokio::test(flavor = "multi_thread")]
async fn cert_writes_a_pair_for_its_owner_and_replaces_nothing() -> Result {
    let dir = folder("").await?;
    let certs = dir.path().join("certs");
    let mode =
        |name: &str| Ok::<_, std::io::Error>(certs.join(name).metadata()?.permissions().mode() & 0o777);
    assert_eq!((mode("server.crt")?, mode("server.key")?), (0o644, 0o600));
    let read = |name: &str| std::fs::read_to_string(certs.join(name));
    let before = (read("server.crt")?, read("server.key")?);
    let again = ["cert", "--out", &certs.display().to_string(), "localhost"];
    let output = anyproxy(&again).await?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.err.contains("server.key"), "{output:?}");
    assert_eq!((read("server.crt")?, read("server.key")?), before);
    // Half a pair is no reason to lose that half.
    std::fs::remove_file(certs.join("server.key"))?;
    assert_eq!(anyproxy(&again).await?.code, 1);
    assert_eq!(read("server.crt")?, before.0);
    assert!(!certs.join("server.key").exists(), "nor to add another half that does not fit");

    let mut openssl = tool("openssl");
    openssl
        .args(["x509", "-noout", "-ext", "subjectAltName,extendedKeyUsage", "-in"])
        .arg(certs.join("server.crt"));
    let shown = run(openssl).await?.ok()?;
    assert!(shown.contains("DNS:localhost, IP Address:127.0.0.1"), "{shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hash_password_prints_a_hash_that_lets_its_user_in() -> Result {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("line"), "corréct horse: battery\n")?;
    let mut program = Program::command(&["hash-password"])?;
    program.stdin(File::open(dir.path().join("line"))?);
    let output = run(program).await?;
    assert_eq!((output.code, &*output.err), (0, ""), "{output:?}");
    assert!(output.out.starts_with("$argon2id$") && output.out.lines().count() == 1, "{output:?}");
    assert_eq!(anyproxy(&["hash-password"]).await?.code, 1, "no password at all");
    for (length, code, says) in [(1_024, 0, ""), (1_025, 1, "1024"), (4_097, 1, "4096")] {
        std::fs::write(dir.path().join("line"), "x".repeat(length))?;
        let mut program = Program::command(&["hash-password"])?;
        program.stdin(File::open(dir.path().join("line"))?);
        let output = run(program).await?;
        assert!(output.code == code && output.err.contains(says), "{length}: {output:?}");
    }

    let users = format!(", users: [ {{ username: alice, password_hash: '{}' }} ]", output.out.trim());
    let options = Options { open: true, http: users.clone(), socks5: users, ..Options::default() };
    let (stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    for (scheme, front) in [("http", stage.http_addr()), ("socks5h", stage.socks5_addr())] {
        let url = target.url("/hello");
        let right = format!("{scheme}://alice:corr%C3%A9ct%20horse%3A%20battery@{front}");
        assert_eq!(curl(&right, &[&url]).await?.ok()?, "hello from inside\n", "{scheme}");
        let wrong = curl(&format!("{scheme}://alice:horse@{front}"), &["--fail", &url]).await?;
        assert_ne!(wrong.code, 0, "{scheme}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_are_a_script_the_shell_takes() -> Result {
    let dir = tempfile::tempdir()?;
    let script = anyproxy(&["completions", "bash"]).await?.ok()?;
    std::fs::write(dir.path().join("script"), format!("{script}\ncomplete -p anyproxy\n"))?;
    let mut bash = tool("bash");
    bash.args(["--norc"]).arg(dir.path().join("script"));
    assert!(run(bash).await?.ok()?.contains("anyproxy"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_which_rule_decides() -> Result {
    let text = format!(
        "proxy:
  http:
    listen_addr: 127.0.0.1:0
    users:
      - {{ username: alice, password: a, groups: [office, lab] }}
      - {{ username: bob, password: b }}
  socks5: {{ listen_addr: 127.0.0.1:0, users: [ {{ username: carol, password: c }} ] }}
{GATEWAY}
  forbidden_hosts: ['*.internal:22']
  access:
    default: deny
    rules:
      - {{ users: [alice], allow: ['*.internal'] }}
  routes: [ {{ targets: ['*.lab.internal'], group: lab }} ]
  limits: {{ rate: {{ per_second: 5 }}, per_user_connections: 7, per_user_dials: 3 }}
"
    );
    let dir = folder(&text).await?;
    let explain = async |user: &str, target: &str| {
        let output = on_file(dir.path(), "explain", &["--user", user, target]).await?;
        assert_eq!(output.err, "", "{target}");
        output.ok()
    };
    let allowed = explain("alice", "tcp://wiki.lab.internal:443").await?;
    assert!(allowed.starts_with("tcp://wiki.lab.internal:443 for alice by http: allowed\n"), "{allowed}");
    for part in [
        "rule 1 at file.yaml:19:9",
        "group: lab, by gateway.routes",
        "limit: 5 dials a second",
        "limit: 7 streams of one user",
        "limit: 3 unanswered dials of one user",
    ] {
        assert!(allowed.contains(part), "{part}: {allowed}");
    }
    let own = explain("alice", "tcp://wiki.internal:443").await?;
    assert!(own.contains("group: office, the user's own"), "{own}");
    for (user, target) in [("alice", "tcp://wiki.internal:22"), ("bob", "tcp://wiki.internal:443")] {
        let denied = explain(user, target).await?;
        assert!(denied.starts_with(&format!("{target} for {user} by http: denied\n")), "{denied}");
    }
    let carol = explain("carol", "tcp://wiki.internal:443").await?;
    assert!(carol.contains("for carol by socks5: denied\n"), "the front that knows her: {carol}");
    for (bad, code) in [
        (&["--user", "dave", "tcp://a:1"][..], 1),
        (&["tcp://a:1"], 1),
        (&["--user", "bob", "--front", "sni", "tcp://a:1"], 1),
        (&["--user", "bob", "--front", "htp", "tcp://a:1"], 2),
        (&["--user", "bob", "a:1"], 2),
    ] {
        assert_eq!(on_file(dir.path(), "explain", bad).await?.code, code, "{bad:?}");
    }
    Ok(())
}

// === Files, variables, secrets ===

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_alone_configures_a_gateway_and_secrets_come_from_files() -> Result {
    let dir = folder("").await?;
    for (name, text) in [("users", "front pass\n"), ("clients", "tunnel pass")] {
        std::fs::write(dir.path().join(name), text)?;
    }
    let mut gateway = Program::command(&["gateway"])?;
    gateway.current_dir(dir.path());
    for (name, value) in [
        ("LOG__FORMAT", "json"),
        ("PROXY__HTTP__LISTEN_ADDR", "127.0.0.1:0"),
        ("PROXY__HTTP__AUTH_USERNAME", "alice"),
        ("PROXY__HTTP__AUTH_PASSWORD_FILE", "users"),
        ("GATEWAY__LISTEN_ADDR", "127.0.0.1:0"),
        ("GATEWAY__TLS_CERT", "certs/server.crt"),
        ("GATEWAY__TLS_KEY", "certs/server.key"),
        ("GATEWAY__AUTH_USERNAME", "gateway_user"),
        ("GATEWAY__AUTH_PASSWORD_FILE", "clients"),
    ] {
        gateway.env(format!("ANYPROXY_{name}"), value);
    }
    let gateway = Program::spawn(&mut gateway)?;
    let text = format!(
        "log: {{ format: json }}\nclient:\n  gateway_addr: {}\n  gateway_tls_cert: certs/server.crt\n  \
         client_id: c\n  auth_username: gateway_user\n  auth_password: wrong\n",
        gateway.listening("gateway")?
    );
    std::fs::write(dir.path().join("file.yaml"), text)?;
    let mut client = Program::command(&["client", "--config", "file.yaml"])?;
    // A variable wins over the file.
    client.current_dir(dir.path()).env("ANYPROXY_CLIENT__AUTH_PASSWORD", "tunnel pass");
    let client = Program::spawn(&mut client)?;
    client.connected()?;
    let target = HttpTarget::start().await?;
    let proxy = format!("http://alice:front%20pass@{}", gateway.listening("http")?);
    assert_eq!(curl(&proxy, &[&target.url("/hello")]).await?.ok()?, "hello from inside\n");

    let mut mistyped = Program::command(&["gateway"])?;
    mistyped.env("ANYPROXY_GATEWAY__LISTEN_ADR", ":1");
    let output = run(mistyped).await?;
    assert_eq!(output.code, 1);
    assert!(output.err.contains("ANYPROXY_GATEWAY__LISTEN_ADR"), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_secrets_that_are_none_stop_the_start() -> Result {
    for account in [
        "auth_username: alice, auth_password: ''",
        "auth_username: alice",
        "auth_username: alice, auth_password_file: missing",
        "auth_username: alice, auth_password_file: empty",
        "auth_username: alice, auth_password: a, auth_password_file: certs/server.crt",
        "users: [ { username: alice, password_hash: '$argon2id$broken' } ]",
        "users: [ { username: alice, password: a }, { username: alice, password: b } ]",
    ] {
        let text = format!("proxy:\n  http: {{ listen_addr: '127.0.0.1:0', {account} }}\n{GATEWAY}");
        let dir = folder(&text).await?;
        std::fs::write(dir.path().join("empty"), "\n")?;
        for command in ["check", "gateway"] {
            let output = on_file(dir.path(), command, &[]).await?;
            assert_eq!(output.code, 1, "{account}: {output:?}");
            assert_eq!(output.err.lines().count(), 1, "{account}: {output:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_no_tunnel_can_carry_are_refused_with_their_place() -> Result {
    let many: String = (0..17).map(|number| format!("g{number}, ")).collect();
    let (long, longer) = ("x".repeat(129), "x".repeat(256));
    let front = |rest: &str| format!("proxy:\n  http:\n    listen_addr: '127.0.0.1:0'\n{rest}\n{GATEWAY}");
    let account = "username: alice, password: secret";
    let user = |user: &str| {
        front(&format!("    users:\n      - {{ username: bob, password: b }}\n      - {{ {user} }}"))
    };
    let client = |client: &str| format!("{GATEWAY}  clients:\n    - {{ {client} }}\n");
    for (text, said) in [
        (user(&format!("{account}, groups: [{many}]")), ":6:9: user \"alice\": 17 groups"),
        (user(&format!("{account}, group: {long}")), ":6:9: user \"alice\": group \"xxx"),
        (user(&format!("username: {longer}, password: a")), ":6:9: user \"xxx"),
        (user("username: bob, password: a"), ":6:9: user \"bob\": the name is used twice"),
        (front(&format!("    group: {long}")), ":3:5: group \"xxx"),
        (front("    users_file: users.htpasswd"), "users.htpasswd: line 2: a user name has"),
        (client(&format!("{account}, groups: [{long}]")), ": group \"xxx"),
        (
            client(&format!("username: {}, password: a, open_ports: ['2222']", &longer[5..])),
            ": an account with open_ports",
        ),
    ] {
        let dir = folder(&text).await?;
        let hash = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
        std::fs::write(dir.path().join("users.htpasswd"), format!("bob:{hash}\n{longer}:{hash}\n"))?;
        let output = on_file(dir.path(), "check", &[]).await?;
        assert_eq!(output.code, 1, "{text}: {output:?}");
        assert!(output.err.contains(said), "{said} is not in {output:?}");
        assert_eq!(output.err.lines().count(), 1, "{output:?}");
    }
    let text = user(&format!("{account}, groups: [{}]", many.replace("g16, ", "")));
    let output = on_file(folder(&text).await?.path(), "check", &[]).await?;
    assert_eq!(output.code, 0, "sixteen groups are carried: {output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_what_stops_a_start_is_said_in_one_line() -> Result {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    for (text, said) in [
        (GATEWAY.replace("127.0.0.1:0", &taken), taken.as_str()),
        (format!("proxy:\n  http: {{ listen_addr: '{taken}' }}\n{GATEWAY}"), taken.as_str()),
        (GATEWAY.replace("server.crt", "missing.crt"), "certs/missing.crt"),
        (GATEWAY.replace("server.key", "server.crt"), "certs/server.crt"),
        ("client: {}\n".to_owned(), "gateway"),
    ] {
        let dir = folder(&text).await?;
        let output = on_file(dir.path(), "gateway", &[]).await?;
        assert_eq!(output.code, 1, "{text}: {output:?}");
        assert_eq!(output.err.lines().count(), 1, "{text}: {output:?}");
        assert!(output.err.starts_with("anyproxy: ") && output.err.contains(said), "{text}: {output:?}");
    }
    let output = anyproxy(&["gateway", "--config", "/nowhere/file.yaml"]).await?;
    assert_eq!(output.code, 1);
    assert!(output.err.starts_with("anyproxy: /nowhere/file.yaml: "), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_a_key_everybody_can_read_is_worth_a_warning() -> Result {
    let dir = folder(&format!("log: {{ format: json }}\n{GATEWAY}")).await?;
    std::fs::set_permissions(dir.path().join("certs/server.key"), Permissions::from_mode(0o644))?;
    let mut gateway = Program::command(&["gateway", "--config", "file.yaml"])?;
    let gateway = Program::spawn(gateway.current_dir(dir.path()))?;
    gateway.listening("gateway")?;
    gateway.line("a warning", |line| {
        line["level"] == "WARN" && line["message"].to_string().contains("server.key")
    })?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_expired_is_worth_a_warning() -> Result {
    let dir = folder(&format!("log: {{ format: json }}\n{GATEWAY}")).await?;
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()])?;
    params.not_after = (SystemTime::now() - Duration::from_secs(86_400)).into();
    let key = rcgen::KeyPair::generate()?;
    std::fs::write(dir.path().join("certs/server.crt"), params.self_signed(&key)?.pem())?;
    std::fs::write(dir.path().join("certs/server.key"), key.serialize_pem())?;
    std::fs::set_permissions(dir.path().join("certs/server.key"), Permissions::from_mode(0o600))?;
    let output = on_file(dir.path(), "check", &[]).await?;
    assert_eq!((output.code, &*output.out), (0, "file.yaml: ok\n"), "clocks may be wrong: {output:?}");
    let said = " WARN certs/server.crt: this certificate expired on ";
    assert!(output.err.starts_with(said) && output.err.lines().count() == 1, "{output:?}");
    let mut unheard = Program::command(&["check", "--config", "file.yaml"])?;
    unheard.current_dir(dir.path()).stdout(Stdio::null());
    assert!(unheard.stderr(File::options().write(true).open("/dev/full")?).status()?.success());
    let mut gateway = Program::command(&["gateway", "--config", "file.yaml"])?;
    let gateway = Program::spawn(gateway.current_dir(dir.path()))?;
    gateway.listening("gateway")?;
    gateway.line("a warning", |line| {
        line["level"] == "WARN" && line["message"].to_string().contains("certificate expired on")
    })?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_front_for_everybody_must_be_asked_for() -> Result {
    for (front, starts) in [
        ("http: { listen_addr: ':0' }", false),
        ("socks5: { listen_addr: '0.0.0.0:0' }", false),
        ("socks5: { listen_addr: ':0', allow_anonymous: true }", true),
        ("http: { listen_addr: '127.0.0.1:0' }", true),
        ("http: { listen_addr: '[::1]:0' }", true),
    ] {
        let dir = folder(&format!("proxy:\n  {front}\n{GATEWAY}")).await?;
        let output = on_file(dir.path(), "check", &[]).await?;
        assert_eq!(output.code == 0, starts, "{front}: {output:?}");
        assert_eq!(output.err.contains("allow_anonymous: true"), !starts, "{front}: {output:?}");
    }
    Ok(())
}

// === demo ===

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_that_demo_prints_work_as_they_are() -> Result {
    let mut demo = Program::start(&["demo"])?;
    demo.text("the end of what it prints", |line| line.contains("Ctrl-C").then_some(()))?;
    let commands: Vec<_> = demo.lines().into_iter().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(commands.len(), 3, "{:?}", demo.lines());
    for command in commands {
        // Whoever pastes it at once must not be too early.
        let mut shell = tool("sh");
        shell.args(["-c", &format!("{command} --silent --show-error --fail")]);
        let answer = run(shell).await?.ok()?;
        assert_eq!(answer, "Hello from a private service, through AnyProxy.\n", "{command}");
    }
    demo.signal(nix::sys::signal::Signal::SIGINT)?;
    assert!(demo.wait()?.success());

    let mut demo = Program::start(&["demo"])?;
    demo.text("the end of what it prints", |line| line.contains("Ctrl-C").then_some(()))?;
    // As a terminal does that is closed.
    demo.signal(nix::sys::signal::Signal::SIGHUP)?;
    assert!(demo.wait()?.success());
    Ok(())
}

// === Logs ===

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_request_ends_whole_at_both_ends_and_with_an_end_for_the_target() -> Result {
    let stage = Stage::start()?;
    // Kept for a request that never comes, until the user leaves; and one that no other can follow.
    for head in ["Content-Length: 2", "Connection: close\r\nContent-Length: 2"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\nok");
        let target = tokio::spawn(async move {
            let (mut user, _) = listener.accept().await?;
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(user.read_u8().await?);
            }
            user.write_all(answer.as_bytes()).await?;
            // An end, or a reset, which is an error. What is ours ends only then.
            user.read_to_end(&mut Vec::new()).await
        });
        let output = curl(&stage.http(), &[&format!("http://{address}/")]).await?;
        assert_eq!(output.ok()?, "ok");
        assert_eq!(target.await??, 0, "{head}");
        let told = [("target", Value::from(address))];
        for line in [stage.gateway.access(&told)?, stage.client.access(&told)?] {
            assert_eq!(line["end"], "whole", "{head}: {line}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_write_one_line_about_a_stream_under_the_same_name() -> Result {
    let (stage, target) = (Stage::start()?, Target::echo().await?);
    let address = Value::from(target.addr().to_string());
    for (way, front) in [(Way::Connect, "http"), (Way::Socks5, "socks5")] {
        let mut stream = tunnel(&stage, way, target.addr()).await?;
        let source = stream.local_addr()?.to_string();
        stream.write_all(b"twelve bytes").await?;
        stream.shutdown().await?;
        let mut back = String::new();
        stream.read_to_string(&mut back).await?;
        drop(stream);

        let told = [("front", front.into()), ("target", address.clone())];
        let (gateway, client) = (stage.gateway.access(&told)?, stage.client.access(&told)?);
        assert!(gateway["stream"].as_str().is_some_and(|stream| stream.contains('-')), "{gateway}");
        assert_eq!(gateway["stream"], client["stream"]);
        for name in ["queue_ms", "connect_ms"] {
            assert!(gateway[name].as_u64().is_some(), "{name}: {gateway}");
        }
        for line in [gateway, client] {
            for (name, value) in [
                ("level", Value::from("INFO")),
                ("user", USER.into()),
                ("group", "default".into()),
                ("source", source.clone().into()),
                ("network", "tcp".into()),
                ("client", "client-1".into()),
                ("bytes_up", 12.into()),
                ("bytes_down", 12.into()),
                ("outcome", "ok".into()),
                ("end", "whole".into()),
            ] {
                assert_eq!(line[name], value, "{name}: {line}");
            }
            for name in ["open_ms", "first_byte_ms", "total_ms"] {
                assert!(line[name].as_u64().is_some(), "{name}: {line}");
            }
        }
    }
    // It begins with the tunnel's.
    let software = |line: &Value| line["software"] == concat!("anyproxy/", env!("CARGO_PKG_VERSION"));
    let session = |line: &Value| line["session"].as_str().map(str::to_owned);
    let told = stage.client.line("a tunnel", |line| line["message"] == "a tunnel to the gateway stands")?;
    let heard = stage.gateway.line("a client", |line| line["message"] == "client connected")?;
    assert!(session(&told).is_some() && session(&told) == session(&heard), "{told} {heard}");
    assert!(software(&told) && software(&heard), "{told} {heard}");
    assert_eq!(heard["client"], "client-1", "by which it is found in the streams' lines: {heard}");
    // A refusal has one as well, at both ends where both had a say.
    let refusing = RefusingTarget::start()?;
    let gone = refusing.addr();
    assert!(tunnel(&stage, Way::Socks5, gone).await.is_err());
    let told = [("outcome", "refused".into()), ("target", gone.to_string().into())];
    assert_eq!(stage.gateway.access(&told)?["user"], USER);
    assert_eq!(stage.client.access(&told)?["user"], USER);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn o1_nobody_s_words_forge_a_line_or_speak_to_a_terminal() -> Result {
    const EVIL: &str = "x\r\n2030-01-01T00:00:00Z  INFO forged\u{1b}[2J\u{7}\u{202e}";
    for format in ["text", "json"] {
        let dir = folder(&format!(
            "log: {{ level: debug, format: {format} }}\nproxy:\n  http: {{ listen_addr: '127.0.0.1:0' }}\n  \
             socks5: {{ listen_addr: '127.0.0.1:0', auth_username: a, auth_password: b }}\n{GATEWAY}"
        ))
        .await?;
        let mut gateway = Program::command(&["gateway", "--config", "file.yaml"])?;
        let mut gateway = Program::spawn(gateway.current_dir(dir.path()))?;
        // The address behind a front's name, in either format.
        let port = |name: &str| {
            let name = [format!("front=\"{name}\""), format!("\"front\":\"{name}\"")];
            gateway.text("a port", |line| {
                let known = line.contains("listening") && name.iter().any(|name| line.contains(name));
                let (_, rest) = line.split_once("127.0.0.1:").filter(|_| known)?;
                let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                rest[..digits].parse::<u16>().ok()
            })
        };
        let (http, socks5, tunnels) = (port("http")?, port("socks5")?, port("gateway")?);
        let mut client = Program::command(&["client"])?;
        for (key, value) in [
            ("GATEWAY_ADDR", format!("127.0.0.1:{tunnels}").as_str()),
            ("GATEWAY_TLS_CERT", "certs/server.crt"),
            ("CLIENT_ID", "evil\u{202e}\" INFO forged=\""),
            ("AUTH_USERNAME", "gateway_user"),
            ("AUTH_PASSWORD", "gateway_password"),
        ] {
            client.env(format!("ANYPROXY_CLIENT__{key}"), value);
        }
        let mut client = Program::spawn(client.env("ANYPROXY_LOG__FORMAT", format).current_dir(dir.path()))?;
        client.text("a tunnel", |line| line.contains("a tunnel to the gateway stands").then_some(()))?;
        // A stream that this client serves has its name in a line at each end.
        let echo = Target::echo().await?;
        let target = echo.addr();
        let mut served = tokio::net::TcpStream::connect(("127.0.0.1", http)).await?;
        served.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
        assert!(head(&mut served).await?.starts_with("HTTP/1.1 200 "));
        drop(served);
        // Names of users and of hosts, in all the ways there are to say them.
        let long = EVIL.repeat(3);
        let mut asked = tokio::net::TcpStream::connect(("127.0.0.1", socks5)).await?;
        asked.write_all(&[&[5, 1, 2, 1, long.len() as u8], long.as_bytes(), &[1, b'b']].concat()).await?;
        asked.read_to_end(&mut Vec::new()).await?;
        for request in [
            format!("GET http://{EVIL}/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            "GET http://%0d%0aforged/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            format!(
                "CONNECT a.invalid:1 HTTP/1.1\r\nHost: a\r\nUser-Agent: {}\r\n\r\n",
                "\u{1b}[2J".repeat(99)
            ),
            format!("GET http://localhost:1/ HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)),
        ] {
            let mut asked = tokio::net::TcpStream::connect(("127.0.0.1", http)).await?;
            let _ = asked.write_all(request.as_bytes()).await;
            let _ = asked.shutdown().await;
            let _ = asked.read_to_end(&mut Vec::new()).await;
        }
        for program in [&mut client, &mut gateway] {
            program.signal(nix::sys::signal::Signal::SIGTERM)?;
            program.wait()?;
            for line in program.lines() {
                assert!(line.starts_with("20") || line.starts_with('{'), "{line:?}");
                assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
                assert!(line.len() <= 2048, "{} bytes: {line:.200}", line.len());
                assert!(format == "text" || serde_json::from_str::<Value>(&line).is_ok(), "{line:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn o2_no_secret_is_in_any_log_line_or_metric_at_any_level() -> Result {
    // Whatever a user or an operator would not want to read there; also as it is on the wire.
    const WORDS: [&str; 8] = [
        PASSWORD,
        "dXNlcjpwYXNzOncwcmQ=",
        "gateway_password",
        "canary-wrong",
        "canary-cookie",
        "canary-token",
        "canary-query",
        "canary-body",
    ];
    let options = Options {
        level: "trace".to_owned(),
        top: "admin: { listen_addr: '127.0.0.1:0' }".to_owned(),
        ..Options::default()
    };
    let (mut stage, target) = (Stage::with(&options)?, HttpTarget::start().await?);
    let private = ["--header", "Cookie: a=canary-cookie", "--header", "Authorization: Bearer canary-token"];
    let url = target.url("/headers?q=canary-query");
    let private = [&private[..], &["--data", "canary-body", &url]].concat();
    for proxy in [stage.http(), stage.socks5()] {
        for tunnel in ["--no-proxytunnel", "--proxytunnel"] {
            curl(&proxy, &[&[tunnel], &private[..]].concat()).await?.ok()?;
            let wrong = proxy.replace("pass%3Aw0rd", "canary-wrong");
            curl(&wrong, &[&[tunnel], &private[..]].concat()).await?;
        }
    }
    let mut metrics = tool("curl");
    metrics.args(["--silent", "--fail", &format!("http://{}/metrics", stage.gateway.listening("admin")?)]);
    let metrics = run(metrics).await?.ok()?;
    assert!(metrics.contains("anyproxy_"), "{metrics}");
    // All lines are out when the processes are.
    for program in [&mut stage.client, &mut stage.gateway] {
        program.signal(nix::sys::signal::Signal::SIGTERM)?;
        program.wait()?;
    }
    let logs = [stage.gateway.lines(), stage.client.lines()].concat().join("\n");
    assert!(logs.contains("\"TRACE\"") || logs.contains("\"DEBUG\""), "the level was heard");
    for word in WORDS {
        assert!(!metrics.contains(word), "{word} in metrics");
        let line = logs.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "{word}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn o2_no_complaint_about_a_file_shows_a_secret() -> Result {
    for account in [
        "auth_username: alice, auth_pasword: canary-secret",
        "auth_username: alice, auth_password: [canary-secret]",
        "auth_username: alice, auth_password: { a: canary-secret }",
        "auth_username: alice, auth_password: canary-secret, auth_password: canary-secret",
        "auth_username: alice, auth_password: \"canary-secret",
        "auth_username: alice, canary-secret",
        "auth_username: alice, auth_password:canary-secret",
        "auth_password: canary-secret",
        "users: [ { username: alice, password_hash: canary-secret } ]",
        "users: [ { username: alice, password: canary-secret, password_hash: canary-secret } ]",
        "users: [ alice, canary-secret ]",
        "users: canary-secret",
    ] {
        let text = format!("proxy:\n  http: {{ listen_addr: '127.0.0.1:0', {account} }}\n{GATEWAY}");
        let dir = folder(&text).await?;
        let output = on_file(dir.path(), "check", &[]).await?;
        assert_eq!(output.code, 1, "{account}: {output:?}");
        assert!(!format!("{output:?}").contains("canary-secret"), "{account}: {output:?}");
    }
    let mut variable = Program::command(&["gateway"])?;
    variable.env("ANYPROXY_GATEWAY__AUTH_PASSWORD", "[canary-secret").env("ANYPROXY_LOG__LEVEL", "none");
    let output = run(variable).await?;
    assert!(output.code == 1 && !output.err.contains("canary-secret"), "{output:?}");
    Ok(())
}
