//! AnyProxy's datagrams: those for one destination leave in one system call, and a receive borrows its memory ([`Scratch`]).
//!
//! Most of what a datagram costs is its way through the kernel: routing, a buffer, a wake-up at the other end. Linux takes
//! equally long datagrams as segments of one and cuts them apart at the end of that way (`UDP_SEGMENT`, generic segmentation
//! offload, since 4.18): three together cost two thirds of three, eight a third of eight. The other end sees
//! datagrams as ever. Elsewhere, and where the kernel or the network's device will not, they leave one by one.
//!
//! ```
//! use anyproxy_udp::{Burst, Peer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! # let receiver = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
//! let to = Peer::new(receiver.local_addr()?);
//! let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
//! let mut burst = Burst::take();
//! for payload in ["one", "two", "six"] {
//!     burst.begin().extend_from_slice(payload.as_bytes());
//!     burst.commit();
//! }
//! let sent = burst.send(&socket, &to).await;
//! assert_eq!((sent.datagrams, sent.bytes), (3, 9));
//! # Ok(())
//! # }
//! ```

mod burst;
mod peer;
mod scratch;

pub use burst::{Burst, MAX_DATAGRAMS, Sent};
pub use peer::Peer;
pub use scratch::Scratch;
