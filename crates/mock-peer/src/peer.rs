use std::fmt;
use std::time::Duration;

use anyproxy_frame::{Frame, GoAway, GoAwayCode};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::time::timeout;

use crate::ws::Head;
use crate::{Result, Ws};

/// How long the other end may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two kinds of frames, which differ in nothing else.
const PING: u8 = 0x09;
const PONG: u8 = 0x0a;

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One end of a tunnel, or of what is not one yet.
pub struct Peer {
    reader: Reader<Box<dyn Io>>,
    /// Clients do.
    masks: bool,
}

/// What the other end said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Its last go-away.
    pub go_away: Option<GoAway>,
    /// Its close frame: code and reason.
    pub close: Option<(u16, String)>,
    /// Whether the connection ended under a flood: what is still unread of one makes the kernel reset the connection,
    /// and the reset may overtake the last words.
    pub flooded: bool,
}

impl End {
    /// The code of the go-away.
    #[must_use]
    pub fn code(&self) -> Option<GoAwayCode> {
        self.go_away.as_ref().map(|go_away| go_away.code)
    }

    /// Whether the last words were overtaken by the reset that ends a flood.
    #[must_use]
    pub const fn is_overtaken(&self) -> bool {
        self.flooded && self.close.is_none()
    }

    /// The code of the close frame.
    #[must_use]
    pub fn close_code(&self) -> Option<u16> {
        self.close.as_ref().map(|(code, _)| *code)
    }
}

impl Peer {
    pub(crate) fn new(io: impl Io + 'static, masks: bool) -> Self {
        Self { reader: Reader::new(Box::new(io)), masks }
    }

    // --- speaking ---

    /// Bytes below WebSocket.
    pub async fn raw(&mut self, bytes: &[u8]) -> Result {
        within("to take bytes", self.reader.io.write_all(bytes)).await??;
        Ok(within("to take bytes", self.reader.io.flush()).await??)
    }

    /// A WebSocket frame.
    pub async fn ws(&mut self, frame: Ws<'_>) -> Result {
        self.raw(&frame.encode(self.masks)).await
    }

    /// A binary message of these bytes.
    pub async fn message(&mut self, bytes: &[u8]) -> Result {
        self.ws(Ws::new(Ws::BINARY, bytes)).await
    }

    /// A frame of the tunnel, in a message of its own.
    pub async fn send(&mut self, frame: &impl Frame) -> Result {
        self.send_all([frame]).await
    }

    /// Frames of the tunnel, in one message.
    pub async fn send_all<'a, F: Frame + 'a>(&mut self, frames: impl IntoIterator<Item = &'a F>) -> Result {
        self.message(&encode(frames)).await
    }

    // --- listening ---

    /// The next frame of the tunnel. Pings are answered, and not shown.
    ///
    /// # Errors
    /// If there is none any more.
    pub async fn next<F: Frame>(&mut self) -> Result<F> {
        let next = async {
            loop {
                let frame: F = self.reader.next().await.map_err(|end| format!("it is over: {end:?}"))?;
                let mut bytes = encode([&frame]);
                match bytes.first_mut() {
                    Some(kind) if *kind == PING => *kind = PONG,
                    _ => return Ok(frame),
                }
                self.message(&bytes).await?;
            }
        };
        within("to say something", next).await?
    }

    /// The first frame of the tunnel for which `wanted` has an answer; others are passed over.
    pub async fn wait<F: Frame, T>(&mut self, mut wanted: impl FnMut(&F) -> Option<T>) -> Result<T> {
        let found = async {
            loop {
                let frame: F = self.next().await?;
                if let Some(found) = wanted(&frame) {
                    return Ok(found);
                }
            }
        };
        within("to say what was waited for", found).await?
    }

    /// How the other end ends: reads until it has said its last word.
    pub async fn end<F: Frame>(mut self) -> Result<End> {
        within("to end", self.reader.end::<F>()).await
    }

    /// Says `chunk` over and over, below WebSocket, and reads what comes, until the other end has had enough.
    ///
    /// # Errors
    /// If it never has.
    pub async fn flood<F: Frame>(self, chunk: &[u8], times: usize) -> Result<End> {
        let (reader, mut writer) = split(self.reader.io);
        let mut reader = Reader { io: reader, buffer: self.reader.buffer, rest: self.reader.rest };
        let flood = async {
            for _ in 0..times {
                if writer.write_all(chunk).await.is_err() {
                    break;
                }
            }
            let _ = writer.flush().await;
            // It may still be reading.
            std::future::pending().await
        };
        tokio::select! {
            end = within("to have had enough", reader.end::<F>()) => end.map(|end| End { flooded: true, ..end }),
            () = flood => unreachable!("it pends"),
        }
    }

    /// The same without reading until the other end has stopped reading too, or everything is said: it may give up
    /// earlier than a peer that reads, and must not hold what it would like to say.
    pub async fn flood_deaf<F: Frame>(mut self, chunk: &[u8], times: usize) -> Result<End> {
        self.pour(chunk, times).await;
        self.end::<F>().await.map(|end| End { flooded: true, ..end })
    }

    /// Says all that, and reads nothing. Stops where the other end has stopped reading.
    pub async fn pour(&mut self, chunk: &[u8], times: usize) {
        for _ in 0..times {
            match timeout(Duration::from_secs(3), self.reader.io.write_all(chunk)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        let _ = timeout(Duration::from_secs(3), self.reader.io.flush()).await;
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("masks", &self.masks).finish_non_exhaustive()
    }
}

/// The bytes of a message of these frames.
fn encode<'a, F: Frame + 'a>(frames: impl IntoIterator<Item = &'a F>) -> BytesMut {
    let mut message = BytesMut::new();
    frames.into_iter().for_each(|frame| frame.encode(&mut message));
    message
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> Result<T> {
    timeout(PATIENCE, work)
        .await
        .map_err(|_| format!("the other end took more than {PATIENCE:?} {what}").into())
}

// === Reader ===

struct Reader<R> {
    io: R,
    buffer: BytesMut,
    /// Of a message, the frames not yet looked at.
    rest: Bytes,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new(), rest: Bytes::new() }
    }

    async fn next<F: Frame>(&mut self) -> std::result::Result<F, End> {
        loop {
            match F::decode(&mut self.rest) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => self.rest = self.message().await?,
                Err(error) => panic!("the other end does not keep to the wire: {error}"),
            }
        }
    }

    async fn end<F: Frame>(&mut self) -> End {
        let mut go_away = None;
        loop {
            match self.next::<F>().await {
                Ok(frame) => go_away = as_go_away(&frame).or(go_away),
                Err(end) => return End { go_away, ..end },
            }
        }
    }

    /// The next message.
    async fn message(&mut self) -> std::result::Result<Bytes, End> {
        loop {
            if let Some((opcode, payload)) = self.frame() {
                match opcode {
                    Ws::BINARY => return Ok(payload),
                    Ws::CLOSE => {
                        let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                        let reason =
                            String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
                        return Err(End { close: Some((code, reason)), ..End::default() });
                    }
                    _ => continue,
                }
            }
            match self.io.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(End::default()),
            }
        }
    }

    /// The next frame of WebSocket, if all of it has come. Honest ends do not send fragments.
    fn frame(&mut self) -> Option<(u8, Bytes)> {
        let head = Head::decode(&self.buffer)?;
        if self.buffer.len() < head.head + head.len {
            return None;
        }
        assert!(head.fin, "an honest end sends no fragments");
        self.buffer.advance(head.head);
        let mut payload = self.buffer.split_to(head.len);
        if let Some(key) = head.mask {
            payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        }
        Some((head.opcode, payload.freeze()))
    }
}

/// A frame that is a go-away, by its bytes: what directions have in common says no more.
fn as_go_away<F: Frame>(frame: &F) -> Option<GoAway> {
    let bytes = encode([frame]);
    let [0x0b, _, _, _, 0, 0, 0, 0, code, l3, l2, l1, l0, reason @ ..] = &bytes[..] else { return None };
    let last = u32::from_be_bytes([*l3, *l2, *l1, *l0]);
    Some(GoAway::new(GoAwayCode::from_u8(*code), last, String::from_utf8_lossy(reason)))
}
