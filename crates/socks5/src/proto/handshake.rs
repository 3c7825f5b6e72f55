use std::error::Error;
use std::fmt;
use std::net::SocketAddr;

use anyproxy_core::{Credentials, InvalidTarget, Target};
use bytes::{Buf as _, Bytes, BytesMut};
use zeroize::Zeroize as _;

use super::address::{Address, UnknownType};
use super::reply::{Reply, ReplyCode};

const VERSION: u8 = 5;
/// Of the sub-negotiation, which counts for itself (RFC 1929).
const LOGIN_VERSION: u8 = 1;

/// A way to log in that a server can choose (RFC 1928 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Method {
    /// No login.
    None = 0x00,
    /// User name and password (RFC 1929).
    Password = 0x02,
}

/// The methods a user offers; those this server does not know are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Methods {
    none: bool,
    password: bool,
}

impl Methods {
    /// Whether the user offers this one.
    #[must_use]
    pub const fn contains(self, method: Method) -> bool {
        match method {
            Method::None => self.none,
            Method::Password => self.password,
        }
    }
}

/// What a user asks for (RFC 1928 section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A stream of bytes to a target.
    Connect(Target),
    /// A port for datagrams.
    Associate {
        /// Where the user says they will send from; `None` if they leave it open or give a name.
        from: Option<SocketAddr>,
    },
}

/// What a user has said.
#[derive(Debug)]
pub enum Event {
    /// The greeting; answer with [`Handshake::choose`].
    Greeting(Methods),
    /// A login; answer with [`Handshake::judge`].
    Login(Credentials),
    /// The request, which ends the handshake; answer with a [`Reply`].
    Request(Request),
}

/// What a user can do wrong. [`answer`](Self::answer) is the last thing to send, then the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Another protocol: the version byte seen.
    Version(u8),
    /// Something else in place of the login, such as a request.
    LoginVersion(u8),
    /// A user name of no bytes.
    EmptyName,
    /// A password of no bytes.
    EmptyPassword,
    /// A user name or password that is no UTF-8.
    LoginEncoding,
    /// A command other than CONNECT and UDP ASSOCIATE.
    Command(u8),
    /// An address of a type nobody knows.
    AddressType(u8),
    /// Nothing that can be dialled.
    Target(InvalidTarget),
}

impl HandshakeError {
    /// What the user is told; `None` where they speak another protocol and would not understand it.
    #[must_use]
    pub fn answer(&self) -> Option<Bytes> {
        let code = match self {
            Self::Version(_) => return None,
            Self::LoginVersion(_) | Self::EmptyName | Self::EmptyPassword | Self::LoginEncoding => {
                return Some(Bytes::copy_from_slice(&verdict(false)));
            }
            Self::Command(_) => ReplyCode::CommandNotSupported,
            Self::AddressType(_) => ReplyCode::AddressTypeNotSupported,
            Self::Target(_) => ReplyCode::HostUnreachable,
        };
        Some(Reply::new(code).encode())
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version:#04x} is not SOCKS5"),
            Self::LoginVersion(version) => write!(f, "version {version:#04x} is no login"),
            Self::EmptyName => f.write_str("empty user name"),
            Self::EmptyPassword => f.write_str("empty password"),
            Self::LoginEncoding => f.write_str("login is not UTF-8"),
            Self::Command(command) => write!(f, "command {command:#04x} is not supported"),
            Self::AddressType(kind) => write!(f, "unknown address type {kind:#04x}"),
            Self::Target(error) => error.fmt(f),
        }
    }
}

impl Error for HandshakeError {}

/// The way of a user from the first byte to the request.
///
/// ```text
///             choose(None)                   judge(false)
///   Greeting ─────► Choice ─────► Login ─────► Verdict ────► Over
///                     │ choose(Some(None))        │ judge(true)   ▲
///                     └───────────► Request ◄─────┘               │
///                                      └──────────────────────────┘
/// ```
///
/// Call [`poll`](Self::poll) whenever bytes have come, answer each event with the command it names, and send the
/// bytes that command returns. After the request, what is left in the buffer is the user's early data.
#[derive(Debug)]
pub struct Handshake {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// The greeting waits for its answer; nothing is read.
    Choice,
    Login,
    /// The login waits for its verdict; nothing is read.
    Verdict,
    Request,
    Over,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// Expects a greeting.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::Greeting }
    }

    /// Takes the next message off the front of `src`; until all of it has arrived, `None` and nothing taken. The
    /// longest has 513 bytes. Passwords are wiped where they stood.
    ///
    /// # Errors
    ///
    /// A [`HandshakeError`], after which the handshake is over. What is wrong at the first byte is said at the first
    /// byte.
    pub fn poll(&mut self, src: &mut BytesMut) -> Result<Option<Event>, HandshakeError> {
        let polled = match self.state {
            State::Greeting => decode_greeting(src).map(|methods| methods.map(Event::Greeting)),
            State::Login => decode_login(src).map(|credentials| credentials.map(Event::Login)),
            State::Request => decode_request(src).map(|request| request.map(Event::Request)),
            State::Choice | State::Verdict | State::Over => return Ok(None),
        };
        self.state = match (&polled, self.state) {
            (Ok(None), state) => state,
            (Ok(Some(_)), State::Greeting) => State::Choice,
            (Ok(Some(_)), State::Login) => State::Verdict,
            _ => State::Over,
        };
        polled
    }

    /// Answers a greeting: the method that is wanted, or none of those offered, which ends the handshake. Returns
    /// what to send.
    #[must_use = "the user waits for it"]
    pub fn choose(&mut self, method: Option<Method>) -> [u8; 2] {
        debug_assert_eq!(self.state, State::Choice, "answers a greeting");
        self.state = match method {
            Some(Method::None) => State::Request,
            Some(Method::Password) => State::Login,
            None => State::Over,
        };
        [VERSION, method.map_or(0xff, |method| method as u8)]
    }

    /// Answers a login; a wrong one ends the handshake. Returns what to send.
    #[must_use = "the user waits for it"]
    pub fn judge(&mut self, accepted: bool) -> [u8; 2] {
        debug_assert_eq!(self.state, State::Verdict, "answers a login");
        self.state = if accepted { State::Request } else { State::Over };
        verdict(accepted)
    }
}

const fn verdict(accepted: bool) -> [u8; 2] {
    [LOGIN_VERSION, !accepted as u8]
}

/// ```text
/// +-----+----------+----------+
/// | VER | NMETHODS | METHODS  |
/// +-----+----------+----------+
/// |  1  |    1     | 0 to 255 |
/// +-----+----------+----------+
/// ```
fn decode_greeting(src: &mut BytesMut) -> Result<Option<Methods>, HandshakeError> {
    expect_version(src, VERSION).map_err(HandshakeError::Version)?;
    let Some(&[_, count]) = src.first_chunk() else { return Ok(None) };
    let length = 2 + usize::from(count);
    let Some(offered) = src.get(2..length) else { return Ok(None) };
    let methods = Methods {
        none: offered.contains(&(Method::None as u8)),
        password: offered.contains(&(Method::Password as u8)),
    };
    src.advance(length);
    Ok(Some(methods))
}

/// ```text
/// +-----+------+----------+------+----------+
/// | VER | ULEN |  UNAME   | PLEN |  PASSWD  |
/// +-----+------+----------+------+----------+
/// |  1  |  1   | 1 to 255 |  1   | 1 to 255 |
/// +-----+------+----------+------+----------+
/// ```
fn decode_login(src: &mut BytesMut) -> Result<Option<Credentials>, HandshakeError> {
    expect_version(src, LOGIN_VERSION).map_err(HandshakeError::LoginVersion)?;
    let Some((name, rest)) = src.get(1..).and_then(counted) else { return Ok(None) };
    let Some((password, rest)) = counted(rest) else { return Ok(None) };
    let length = src.len() - rest.len();
    let credentials = match (str::from_utf8(name), str::from_utf8(password)) {
        (Ok(""), _) => Err(HandshakeError::EmptyName),
        (_, Ok("")) => Err(HandshakeError::EmptyPassword),
        (Ok(name), Ok(password)) => Ok(Credentials::new(name, password)),
        _ => Err(HandshakeError::LoginEncoding),
    };
    src[..length].zeroize();
    src.advance(length);
    credentials.map(Some)
}

/// ```text
/// +-----+-----+-------+------+----------+----------+
/// | VER | CMD |  RSV  | ATYP | DST.ADDR | DST.PORT |
/// +-----+-----+-------+------+----------+----------+
/// |  1  |  1  | X'00' |  1   | variable |    2     |
/// +-----+-----+-------+------+----------+----------+
/// ```
///
/// The reserved byte is not looked at: there are users that put something there, and nothing hangs on it.
fn decode_request(src: &mut BytesMut) -> Result<Option<Request>, HandshakeError> {
    expect_version(src, VERSION).map_err(HandshakeError::Version)?;
    let Some((&[_, command, _], rest)) = src.split_first_chunk() else { return Ok(None) };
    let decoded = Address::decode(rest).map_err(|UnknownType(kind)| HandshakeError::AddressType(kind))?;
    let Some((address, rest)) = decoded else { return Ok(None) };
    let request = match command {
        0x01 => address.to_target().map(Request::Connect).map_err(HandshakeError::Target),
        0x03 => Ok(Request::Associate {
            from: match address {
                Address::Ip(from) if from.port() != 0 => Some(from),
                _ => None,
            },
        }),
        other => Err(HandshakeError::Command(other)),
    };
    let length = src.len() - rest.len();
    src.advance(length);
    request.map(Some)
}

/// Says what is wrong with the first byte, as soon as there is one.
fn expect_version(src: &[u8], expected: u8) -> Result<(), u8> {
    match src.first() {
        Some(&seen) if seen != expected => Err(seen),
        _ => Ok(()),
    }
}

/// A length and as many bytes, and what follows; `None` until all of it is there.
fn counted(src: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, src) = src.split_first()?;
    src.split_at_checked(length.into())
}

// === Fuzzing ===

pub(super) fn fuzz(input: &[u8]) {
    let whole = play(input, input.len());
    for piece in [1, 2, 3, 7] {
        assert_eq!(play(input, piece), whole, "in pieces of {piece}");
    }
}

/// What a handshake makes of `input` that comes in pieces: each event and error as text, and the bytes left over.
/// The server asks for a login where one is offered, and lets everybody in whose name does not begin with `x`.
fn play(input: &[u8], piece: usize) -> (Vec<String>, Vec<u8>) {
    let mut handshake = Handshake::new();
    let (mut src, mut said) = (BytesMut::new(), Vec::new());
    let mut pieces = input.chunks(piece.max(1));
    loop {
        match handshake.poll(&mut src) {
            Ok(None) => match pieces.next() {
                Some(piece) => src.extend_from_slice(piece),
                None => return (said, src.to_vec()),
            },
            Ok(Some(event)) => match &event {
                Event::Greeting(methods) => {
                    let method =
                        [Method::Password, Method::None].into_iter().find(|method| methods.contains(*method));
                    said.push(format!("{event:?} {:?}", handshake.choose(method)));
                }
                Event::Login(credentials) => {
                    let secret = credentials.password.expose_secret();
                    assert!(
                        (1..256).contains(&credentials.username.len()) && (1..256).contains(&secret.len())
                    );
                    let accepted = !credentials.username.starts_with('x');
                    said.push(format!("{event:?} {secret:?} {:?}", handshake.judge(accepted)));
                }
                Event::Request(_) => said.push(format!("{event:?}")),
            },
            Err(error) => {
                said.push(format!("{error:?} {:?}", error.answer()));
                // Where nothing more is read, what is left depends on the pieces.
                return (said, Vec::new());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPEN: &[u8] = b"\x05\x01\x00";
    const LOGIN: &[u8] = b"\x05\x02\x00\x02\x01\x05alice\x06secret";
    const CONNECT: &[u8] = b"\x05\x01\x00\x03\x0bprinter.lan\x02\x77";

    fn request(bytes: &[u8]) -> Result<Option<Request>, HandshakeError> {
        decode_request(&mut BytesMut::from(bytes))
    }

    fn login(bytes: &[u8]) -> Result<Option<Credentials>, HandshakeError> {
        decode_login(&mut BytesMut::from(bytes))
    }

    fn connect(target: &str) -> Result<Option<Request>, HandshakeError> {
        Ok(Some(Request::Connect(Target::parse(target).unwrap())))
    }

    #[test]
    fn requests_as_written_in_hex() {
        assert_eq!(request(CONNECT), connect("printer.lan:631"));
        assert_eq!(request(b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x16"), connect("192.0.2.1:22"));
        assert_eq!(
            request(b"\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x01\xbb"),
            connect("[2001:db8::1]:443")
        );
        let from = "192.0.2.9:4660".parse().ok();
        assert_eq!(
            request(b"\x05\x03\x00\x01\xc0\x00\x02\x09\x12\x34"),
            Ok(Some(Request::Associate { from }))
        );
        for open in [&b"\x05\x03\x00\x01\0\0\0\0\0\0"[..], b"\x05\x03\x00\x03\x00\x12\x34"] {
            assert_eq!(request(open), Ok(Some(Request::Associate { from: None })));
        }
    }

    #[test]
    fn s1_every_split_point_gives_the_same_and_early_data_stays() {
        let whole = [LOGIN, CONNECT, b"early"].concat();
        let (said, left) = play(&whole, whole.len());
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(left, b"early");
        for first in 1..whole.len() {
            let mut handshake = Handshake::new();
            let mut src = BytesMut::from(&whole[..first]);
            let mut events = 0;
            let mut rest = Some(&whole[first..]);
            loop {
                match handshake.poll(&mut src).unwrap() {
                    None => match rest.take() {
                        Some(rest) => src.extend_from_slice(rest),
                        None => break,
                    },
                    Some(event) => {
                        events += 1;
                        match event {
                            Event::Greeting(_) => drop(handshake.choose(Some(Method::Password))),
                            Event::Login(_) => drop(handshake.judge(true)),
                            Event::Request(request) => {
                                assert_eq!(Ok(Some(request)), connect("printer.lan:631"));
                            }
                        }
                    }
                }
            }
            assert_eq!((events, &src[..]), (3, &b"early"[..]), "split at {first}");
        }
        fuzz(&whole);
        fuzz(&[OPEN, CONNECT, b"early"].concat());
    }

    #[test]
    fn s2_another_protocol_is_known_by_its_first_byte_and_gets_no_answer() {
        for first in [4, 0, b'G'] {
            let error = Handshake::new().poll(&mut BytesMut::from(&[first][..])).unwrap_err();
            assert_eq!(error, HandshakeError::Version(first));
            assert_eq!(error.answer(), None);
        }
    }

    #[test]
    fn s3_no_method_is_no_match() {
        let mut handshake = Handshake::new();
        let event = handshake.poll(&mut BytesMut::from(&b"\x05\x00"[..])).unwrap().unwrap();
        let Event::Greeting(methods) = event else { unreachable!("{event:?}") };
        assert_eq!(methods, Methods::default());
        assert_eq!(handshake.choose(None), [5, 0xff]);
        assert!(handshake.poll(&mut BytesMut::from(CONNECT)).unwrap().is_none(), "it is over");
    }

    #[test]
    fn s4_a_request_in_place_of_the_login_ends_it() {
        let error = login(CONNECT).unwrap_err();
        assert_eq!(error, HandshakeError::LoginVersion(5));
        assert_eq!(&error.answer().unwrap()[..], b"\x01\x01");
    }

    #[test]
    fn s5_logins_are_whole_or_refused() {
        assert_eq!(login(b"\x02\x01a\x01b").unwrap_err(), HandshakeError::LoginVersion(2));
        assert_eq!(login(b"\x01\x00\x01b").unwrap_err(), HandshakeError::EmptyName);
        assert_eq!(login(b"\x01\x01a\x00").unwrap_err(), HandshakeError::EmptyPassword);
        assert_eq!(login(b"\x01\x01\xff\x01b").unwrap_err(), HandshakeError::LoginEncoding);
        assert_eq!(login(b"\x01\x01a\x01\xff").unwrap_err(), HandshakeError::LoginEncoding);
        let (name, password) = ("n".repeat(255), "p".repeat(255));
        let longest = [b"\x01\xff", name.as_bytes(), b"\xff", password.as_bytes()].concat();
        let credentials = login(&longest).unwrap().unwrap();
        assert_eq!(*credentials.username, *name);
        assert_eq!(credentials.password.expose_secret(), password);
        assert!(login(&longest[..longest.len() - 1]).unwrap().is_none());
    }

    #[test]
    fn s6_unknown_commands_and_address_types_have_their_replies() {
        for command in [0x02, 0x00, 0xff] {
            let error = request(&[5, command, 0, 1, 192, 0, 2, 1, 0, 22]).unwrap_err();
            assert_eq!(error, HandshakeError::Command(command));
            assert_eq!(&error.answer().unwrap()[..2], b"\x05\x07");
        }
        for kind in [0x02, 0x05] {
            let error = request(&[5, 1, 0, kind]).unwrap_err();
            assert_eq!(error, HandshakeError::AddressType(kind));
            assert_eq!(&error.answer().unwrap()[..2], b"\x05\x08");
        }
    }

    #[test]
    fn s7_names_that_are_none_are_refused_and_literals_are_addresses() {
        let named =
            |name: &[u8]| request(&[b"\x05\x01\0\x03", &[name.len() as u8][..], name, b"\x01\xbb"].concat());
        for bad in [&b""[..], b"a\0b", b"a b", b"a\rb", b"a/b", b"u@h", b"\xff\xfe", b"0x7f.1", b"2130706433"]
        {
            let error = named(bad).unwrap_err();
            assert!(matches!(error, HandshakeError::Target(_)), "{bad:?}");
            assert_eq!(&error.answer().unwrap()[..2], b"\x05\x04");
        }
        assert!(named(&[b'a'; 255]).is_err());
        assert_eq!(named(b"127.0.0.1"), connect("127.0.0.1:443"));
        assert_eq!(named(b"::ffff:127.0.0.1"), connect("127.0.0.1:443"));
        let longest = format!("{}.{}", ["a"; 125].join("."), "bcdef");
        assert_eq!(longest.len(), 255);
        assert_eq!(named(longest.as_bytes()), connect(&format!("{longest}:443")));
        assert!(request(b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x00").is_err(), "port 0");
    }

    proptest! {
        #[test]
        fn any_bytes_give_the_same_in_any_pieces(input in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz(&input);
        }

        #[test]
        fn perturbed_handshakes_give_the_same_in_any_pieces(
            open in any::<bool>(),
            name in "[a-z0-9.]{0,255}",
            port in any::<u16>(),
            at in any::<proptest::sample::Index>(),
            flip in any::<u8>(),
        ) {
            let mut input = if open { OPEN } else { LOGIN }.to_vec();
            input.extend_from_slice(&[5, 1, 0, 3, name.len() as u8]);
            input.extend_from_slice(name.as_bytes());
            input.extend_from_slice(&port.to_be_bytes());
            fuzz(&input);
            let at = at.index(input.len());
            input[at] ^= flip;
            fuzz(&input);
        }

        #[test]
        fn what_a_user_encodes_is_what_the_server_reads(
            host in "[a-z]{1,20}(\\.[a-z]{1,10}){0,3}|::[0-9a-f]{1,4}|10\\.0\\.[0-9]\\.[0-9]",
            port in 1_u16..,
        ) {
            let target = Target::new(anyproxy_core::Host::parse(&host).unwrap(), port).unwrap();
            let mut bytes = BytesMut::from(&b"\x05\x01\x00"[..]);
            super::super::address::encode_target(&target, &mut bytes);
            prop_assert_eq!(decode_request(&mut bytes), Ok(Some(Request::Connect(target))));
            prop_assert!(bytes.is_empty());
        }
    }
}
