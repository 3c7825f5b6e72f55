//! git over HTTP, smart and dumb, through both fronts.

use std::path::Path;
use std::process::Command;

use anyproxy_tests::{HttpTarget, Program, Result, Stage, python, run, tool};

/// git without the settings of whoever runs the tests.
fn git(dir: &Path, arguments: &[&str]) -> Command {
    let mut git = tool("git");
    git.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    git.env("GIT_TERMINAL_PROMPT", "0");
    for setting in ["user.name=Someone", "user.email=someone@example.com", "init.defaultBranch=main"] {
        git.args(["-c", setting]);
    }
    git.args(arguments);
    git
}

/// A bare repository `served/project.git` with two commits of a megabyte each.
async fn repository(dir: &Path) -> Result {
    std::fs::create_dir_all(dir.join("served"))?;
    run(git(dir, &["init", "--quiet", "work"])).await?.ok()?;
    let work = dir.join("work");
    for turn in 1..=2 {
        std::fs::write(work.join("file"), HttpTarget::bytes((1 << 20) + turn))?;
        run(git(&work, &["add", "file"])).await?.ok()?;
        run(git(&work, &["commit", "--quiet", "--message", "a change"])).await?.ok()?;
    }
    run(git(dir, &["clone", "--quiet", "--bare", "work", "served/project.git"])).await?.ok()?;
    let served = dir.join("served/project.git");
    run(git(&served, &["config", "http.receivepack", "true"])).await?.ok()?;
    run(git(&served, &["update-server-info"])).await?.ok().map(drop)
}

/// A server of `dir` and the port it says it has.
fn serve(command: &mut Command, dir: &Path) -> Result<(Program, u16)> {
    let server = Program::spawn(command.current_dir(dir))?;
    let port = server.text("a port", |line| {
        line.strip_prefix("Serving HTTP on 127.0.0.1 port ")?.split(' ').next()?.parse().ok()
    })?;
    Ok((server, port))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_plain_files_is_cloned_through_both_fronts() -> Result {
    let stage = Stage::start()?;
    repository(stage.dir()).await?;
    let mut server = tool("python3");
    server.args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--protocol", "HTTP/1.1"]);
    let (_server, port) = serve(&mut server, &stage.dir().join("served"))?;
    let url = format!("http://localhost:{port}/project.git");
    for (name, proxy) in [("http", stage.http()), ("socks5", stage.socks5())] {
        let proxy = format!("http.proxy={proxy}");
        run(git(stage.dir(), &["-c", &proxy, "clone", "--quiet", &url, name])).await?.ok()?;
        let file = std::fs::read(stage.dir().join(name).join("file"))?;
        assert_eq!(HttpTarget::hash_of(&file), HttpTarget::hash((1 << 20) + 2), "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_cloned_pushed_to_and_pulled_from_through_both_fronts() -> Result {
    let stage = Stage::start()?;
    repository(stage.dir()).await?;
    let (_server, port) = serve(&mut python("git_server.py")?, &stage.dir().join("served"))?;
    let url = format!("http://localhost:{port}/project.git");
    for (name, proxy) in [("http", stage.http()), ("socks5", stage.socks5())] {
        let proxy = format!("http.proxy={proxy}");
        run(git(stage.dir(), &["-c", &proxy, "clone", "--quiet", &url, name])).await?.ok()?;
        let clone = stage.dir().join(name);
        // More than git's buffer of a megabyte: the body goes in chunks.
        std::fs::write(clone.join(name), HttpTarget::bytes(3 << 20))?;
        run(git(&clone, &["add", name])).await?.ok()?;
        run(git(&clone, &["commit", "--quiet", "--message", name])).await?.ok()?;
        run(git(&clone, &["-c", &proxy, "push", "--quiet", "origin", "main"])).await?.ok()?;
    }
    let pull = ["-c", &format!("http.proxy={}", stage.http()), "pull", "--quiet", "--ff-only"];
    run(git(&stage.dir().join("http"), &pull)).await?.ok()?;
    let pulled = std::fs::read(stage.dir().join("http/socks5"))?;
    assert_eq!(HttpTarget::hash_of(&pulled), HttpTarget::hash(3 << 20));
    Ok(())
}
