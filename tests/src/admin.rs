use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{Program, Result};

/// The gauge or counter of an admin page.
pub async fn metric(program: &Program, name: &str) -> Result<f64> {
    metric_at(program.listening("admin")?, name).await
}

/// The same of the page at `admin`.
pub async fn metric_at(admin: SocketAddr, name: &str) -> Result<f64> {
    let mut admin = TcpStream::connect(admin).await?;
    admin.write_all(b"GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").await?;
    let mut page = String::new();
    admin.read_to_string(&mut page).await?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.ok_or_else(|| format!("no {name}"))?.parse()?)
}
