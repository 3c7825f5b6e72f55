//! OpenSSH through the programs its users put into `ProxyCommand`: ncat and connect-proxy.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyproxy_tests::{HttpTarget, PASSWORD, Program, Result, Stage, USER, free_port, run, tool};

/// An OpenSSH server of our own, in front of nothing but this machine.
struct Sshd {
    _server: Program,
    port: u16,
}

impl Sshd {
    async fn start(dir: &Path) -> Result<Self> {
        for key in ["host", "user"] {
            let mut keygen = tool("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key));
            run(keygen).await?.ok()?;
        }
        let (port, dir) = (free_port()?, dir.display());
        // OpenSSH wants to be called by a path, and root's has a folder to lock its children into.
        if nix::unistd::geteuid().is_root() {
            std::fs::create_dir_all("/run/sshd")?;
            std::fs::set_permissions("/run/sshd", std::fs::Permissions::from_mode(0o755))?;
        }
        let mut sshd = tool("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f", "/dev/null"]);
        for option in [
            "ListenAddress=127.0.0.1",
            &format!("Port={port}"),
            &format!("HostKey={dir}/host"),
            &format!("AuthorizedKeysFile={dir}/user.pub"),
            "PidFile=none",
            "UsePAM=no",
            "StrictModes=no",
            "PermitRootLogin=prohibit-password",
            "Subsystem=sftp internal-sftp",
        ] {
            sshd.args(["-o", option]);
        }
        let server = Program::spawn(&mut sshd)?;
        server.text("sshd's port", |line| line.starts_with("Server listening on").then_some(()))?;
        Ok(Self { _server: server, port })
    }
}

/// `ssh` or `scp`, for a server whose key it has never seen, by way of `proxy`.
fn command(name: &str, stage: &Stage, port: u16, proxy: &str) -> Command {
    let mut command = tool(name);
    command.args(["-F", "none", "-i"]).arg(stage.dir().join("user"));
    for option in [
        &format!("ProxyCommand={proxy}"),
        &format!("Port={port}"),
        "BatchMode=yes",
        "StrictHostKeyChecking=accept-new",
        "UpdateHostKeys=no",
        "LogLevel=ERROR",
        &format!("UserKnownHostsFile={}", stage.dir().join("known").display()),
    ] {
        command.args(["-o", option]);
    }
    command.env("HTTP_PROXY_PASSWORD", PASSWORD).env("SOCKS5_PASSWORD", PASSWORD);
    command
}

/// The ways in, each by each program.
fn proxies(stage: &Stage) -> [String; 4] {
    let (http, socks5) = (stage.http_addr(), stage.socks5_addr());
    let login = format!("--proxy-auth {USER}:{PASSWORD}");
    [
        format!("ncat --proxy-type http --proxy {http} {login} %h %p"),
        format!("ncat --proxy-type socks5 --proxy {socks5} --proxy-dns remote {login} %h %p"),
        format!("connect-proxy -H {USER}@{http} %h %p"),
        format!("connect-proxy -S {USER}@{socks5} -R remote %h %p"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_inside_answers_through_every_proxy_command() -> Result {
    let stage = Stage::start()?;
    let sshd = Sshd::start(stage.dir()).await?;
    for proxy in proxies(&stage) {
        let mut ssh = command("ssh", &stage, sshd.port, &proxy);
        ssh.args(["localhost", "echo $((6 * 7)); cat /dev/null; exit 3"]);
        let output = run(ssh).await?;
        assert_eq!((output.code, &*output.out), (3, "42\n"), "{proxy}: {output:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_whole_in_both_directions() -> Result {
    const LENGTH: usize = 4 << 20;
    let stage = Stage::start()?;
    let sshd = Sshd::start(stage.dir()).await?;
    let here = stage.dir().join("here").display().to_string();
    std::fs::write(&here, HttpTarget::bytes(LENGTH))?;
    for (index, proxy) in proxies(&stage).into_iter().enumerate() {
        let there = stage.dir().join(format!("there-{index}")).display().to_string();
        let back = stage.dir().join(format!("back-{index}")).display().to_string();
        let mut up = command("scp", &stage, sshd.port, &proxy);
        up.args([&here, &format!("localhost:{there}")]);
        run(up).await?.ok()?;
        let mut down = command("scp", &stage, sshd.port, &proxy);
        down.args([&format!("localhost:{there}"), &back]);
        run(down).await?.ok()?;
        assert_eq!(HttpTarget::hash_of(&std::fs::read(back)?), HttpTarget::hash(LENGTH), "{proxy}");
    }
    Ok(())
}
