//! Two ends without a socket, and what a peer may do to one of them: for the fuzz target and for tests.

use std::io::IoSlice;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, Error, ServerConfig};
use tokio::io::ReadBuf;

use crate::buffer::Buffer;
use crate::connection::{Connection, Step};
use crate::record::{MAX_CONTENT, kind};
use crate::traffic::{Read, Traffic};

/// Plays a script. Its first byte says who speaks: somebody without keys, to a server or to a client; or, since anybody may do a
/// handshake with a server, somebody with them.
///
/// # Panics
///
/// If what is heard depends on the pieces it comes in, is not what was said, or an error is not for good; or if `server`, which
/// `client` trusts by the name `localhost`, and `client` do not agree on TLS 1.3.
pub fn play(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, script: &[u8]) {
    let [who, step, script @ ..] = script else { return };
    let end = || match who % 3 {
        0 => Connection::server(UnbufferedServerConnection::new(server.clone()).expect("a server")),
        _ => Connection::client(UnbufferedClientConnection::new(client.clone(), name()).expect("a client")),
    };
    if who % 3 == 2 {
        return speak(Pair::new(client, server), usize::from(*step), Script(script));
    }
    let pieces = hear(end(), script, 1 + usize::from(*step));
    assert_eq!(hear(end(), script, usize::MAX), pieces, "in pieces or not");
}

/// The name of every server here.
pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

/// What an end that has no keys yet makes of `bytes`, which come in pieces of `step`.
fn hear(mut end: Connection, bytes: &[u8], step: usize) -> Result<Step, Error> {
    let (mut received, mut sealed) = (Buffer::default(), Buffer::default());
    for piece in bytes.chunks(step) {
        put(&mut received, piece);
        loop {
            match end.step(&mut received, &mut sealed) {
                Ok(Step::Again) => {}
                Ok(Step::NeedsMore) => break,
                Err(error) => {
                    assert_eq!(end.step(&mut received, &mut sealed), Err(error.clone()), "for good");
                    return Err(error);
                }
                other => return other,
            }
        }
    }
    Ok(Step::NeedsMore)
}

pub(crate) fn put(buffer: &mut Buffer, bytes: &[u8]) {
    let copy = |out: &mut [u8]| {
        out.copy_from_slice(bytes);
        Ok::<_, Error>(bytes.len())
    };
    buffer.append(bytes.len(), copy).expect("a copy");
}

/// The server says what the script wants, and now and then the client reads or answers.
fn speak(mut pair: Pair, room: usize, mut script: Script<'_>) {
    // Small, so that records are opened in place; or large, so that they are not.
    let room = if room == 0 { 100_000 } else { room };
    let (mut said, mut heard) = (Vec::new(), Vec::new());
    // Whether the server has said nothing but what ours would, and all of that arrived as it was.
    let (mut honest, mut changed) = (true, false);
    while !script.0.is_empty() {
        let choice = script.byte() % 8;
        honest &= matches!(choice, 0 | 1 | 6 | 7);
        match choice {
            0 => {
                let length = (1 + usize::from(script.byte()) * 67).min(MAX_CONTENT);
                let content: Vec<_> = (0..length).map(|byte| (byte % 251) as u8).collect();
                pair.say(kind::DATA, &content);
                said.extend(content);
            }
            1 => {
                pair.server.update_key(&mut pair.line).expect("a new key");
                // One after the other would be a flood.
                pair.say(kind::DATA, b"x");
                said.push(b'x');
            }
            2 => pair.say(kind::HANDSHAKE, script.bytes()),
            3 => pair.say(kind::ALERT, script.bytes()),
            4 => {
                let (kind, content) = (script.byte(), script.bytes());
                pair.say(kind, content);
                if let (kind::DATA, content) = stripped(kind, content) {
                    said.extend_from_slice(content);
                }
            }
            5 => {
                let (at, by) = (usize::from(script.byte()), script.byte());
                if let Some(byte) = pair.line.filled_mut().get_mut(at) {
                    *byte ^= by;
                    changed |= by != 0;
                }
            }
            6 => pair.answer(),
            _ => {
                let (part, outcome) = pair.read(room);
                heard.extend(part);
                if outcome != Ok(Read::NeedsMore) {
                    break;
                }
            }
        }
    }
    let (part, outcome) = pair.read(room);
    heard.extend(part);
    assert!(said.starts_with(&heard), "heard {} of {} bytes, and others", heard.len(), said.len());
    assert!(!honest || outcome == Ok(Read::NeedsMore), "{outcome:?}");
    if outcome == Ok(Read::NeedsMore) && !changed {
        assert_eq!(heard.len(), said.len(), "and no error");
    }
}

/// The kind and the content that are meant: zeros at the end are padding, also of what claims to be of kind 0.
fn stripped(kind: u8, content: &[u8]) -> (u8, &[u8]) {
    match content {
        [content @ .., last] if kind == 0 => stripped(*last, content),
        _ => (kind, content),
    }
}

/// The choices that are left; when they have run out, every choice is 0.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// As many as the next byte says, up to 63 and what is left.
    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte() % 64).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }
}

/// Two ends after a handshake, and what lies between them.
pub(crate) struct Pair {
    pub(crate) client: Traffic,
    pub(crate) server: Traffic,
    /// What the server said and the client has not read.
    pub(crate) line: Buffer,
}

impl Pair {
    pub(crate) fn new(client: &ClientConfig, server: &ServerConfig) -> Self {
        let (mut client, mut server) = (client.clone(), server.clone());
        (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
        let client = UnbufferedClientConnection::new(Arc::new(client), name()).expect("a client");
        let server = UnbufferedServerConnection::new(Arc::new(server)).expect("a server");
        let (mut client, mut server) = (Connection::client(client), Connection::server(server));
        let (mut up, mut line) = (Buffer::default(), Buffer::default());
        fn go_on(end: &mut Connection, from: &mut Buffer, to: &mut Buffer) -> bool {
            loop {
                match end.step(from, to).expect("a handshake") {
                    Step::Again => {}
                    step => return step == Step::Done,
                }
            }
        }
        while !go_on(&mut client, &mut line, &mut up) {
            go_on(&mut server, &mut up, &mut line);
        }
        let traffic = |end: Connection| end.into_traffic().expect("keys").ok().expect("TLS 1.3");
        let mut client = traffic(client);
        // A client may speak in the flight that ends its handshake.
        client.say(kind::DATA, b"early", &mut up).expect("a record");
        assert!(go_on(&mut server, &mut up, &mut line), "the handshake is done");
        let mut server = traffic(server);
        let mut early = [0; 100];
        let mut early = ReadBuf::new(&mut early);
        assert_eq!(server.read(&mut up, &mut early, &mut line), Ok(Read::Data));
        assert_eq!(early.filled(), b"early");
        Self { client, server, line }
    }

    /// The server says what no server of ours would.
    pub(crate) fn say(&mut self, kind: u8, content: &[u8]) {
        self.server.say(kind, content, &mut self.line).expect("a record");
    }

    /// What the client reads, with room for so many bytes at once, until there is no more; then how that ended.
    pub(crate) fn read(&mut self, room: usize) -> (Vec<u8>, Result<Read, Error>) {
        let (mut all, mut part, mut alert) = (Vec::new(), vec![0; room], Buffer::default());
        loop {
            let mut part = ReadBuf::new(&mut part);
            match self.client.read(&mut self.line, &mut part, &mut alert) {
                Ok(Read::Data) => all.extend_from_slice(part.filled()),
                Err(error) => {
                    let again = self.client.read(&mut self.line, &mut part, &mut alert);
                    assert_eq!(again, Err(error.clone()), "for good");
                    let sealed = self.client.seal(&[IoSlice::new(b"x")], &mut Buffer::default());
                    assert_eq!(sealed, Err(error.clone()));
                    // What the client says of it, the server hears.
                    let heard = self.server.read(&mut alert, &mut part, &mut Buffer::default());
                    match error {
                        Error::AlertReceived(_) => assert_eq!(heard, Ok(Read::NeedsMore)),
                        _ => assert!(matches!(heard, Err(Error::AlertReceived(_))), "{heard:?}"),
                    }
                    return (all, Err(error));
                }
                other => return (all, other),
            }
        }
    }

    /// The client says a word, behind the new key that it may owe, and the server hears it.
    fn answer(&mut self) {
        let (mut sealed, mut part) = (Buffer::default(), [0; 100]);
        let mut part = ReadBuf::new(&mut part);
        self.client.seal(&[IoSlice::new(b"word")], &mut sealed).expect("a client that has not failed");
        let heard = self.server.read(&mut sealed, &mut part, &mut Buffer::default());
        assert_eq!((heard, part.filled()), (Ok(Read::Data), &b"word"[..]));
    }
}
