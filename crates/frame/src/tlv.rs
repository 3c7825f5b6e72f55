//! Fields: a tag of one byte, a length of two, the value. Hellos, opens and answers are rows of them, so that later
//! versions can say more to peers that do not listen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{BufMut, BytesMut};

use crate::{DecodeError, MAX_WINDOW, MIN_WINDOW};

/// Bytes before a field's value.
const FIELD_HEAD: usize = 3;

// === impl Fields ===

/// The fields of a payload, in the order in which they stand.
pub(crate) struct Fields<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(kind: u8, payload: &'a [u8]) -> Self {
        Self { kind, rest: payload }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, rest) = self.rest.split_first()?;
        let kind = self.kind;
        let Some((len, rest)) = rest.split_first_chunk() else {
            self.rest = &[];
            return Some(Err(DecodeError::TruncatedField { kind, tag: None }));
        };
        let Some((value, rest)) = rest.split_at_checked(u16::from_be_bytes(*len).into()) else {
            self.rest = &[];
            return Some(Err(DecodeError::TruncatedField { kind, tag: Some(tag) }));
        };
        self.rest = rest;
        Some(Ok(Field { kind, tag, value }))
    }
}

// === impl Field ===

/// One field. Its readers say which values it may have.
pub(crate) struct Field<'a> {
    kind: u8,
    pub(crate) tag: u8,
    value: &'a [u8],
}

impl<'a> Field<'a> {
    /// The value, if it is no longer than its limit.
    pub(crate) fn bytes(&self, limit: usize) -> Result<&'a [u8], DecodeError> {
        if self.value.len() > limit {
            let Self { kind, tag, .. } = *self;
            return Err(DecodeError::FieldTooLong { kind, tag, claimed: self.value.len(), limit });
        }
        Ok(self.value)
    }

    /// A value of exactly this many bytes.
    pub(crate) fn array<const N: usize>(&self) -> Result<[u8; N], DecodeError> {
        self.bytes(N)?.try_into().map_err(|_| self.invalid())
    }

    pub(crate) fn text(&self, limit: usize) -> Result<String, DecodeError> {
        let text = str::from_utf8(self.bytes(limit)?).map_err(|_| self.invalid())?;
        Ok(text.to_owned())
    }

    /// Words for a log, where a broken character is no reason to lose the tunnel.
    pub(crate) fn words(&self, limit: usize) -> Result<String, DecodeError> {
        let mut words = String::from_utf8_lossy(self.bytes(limit)?).into_owned();
        // What stands for a broken character is longer than what it stands for.
        words.truncate(words.floor_char_boundary(limit));
        Ok(words)
    }

    pub(crate) fn window(&self) -> Result<u32, DecodeError> {
        let window = u32::from_be_bytes(self.array()?);
        if (MIN_WINDOW..=MAX_WINDOW).contains(&window) { Ok(window) } else { Err(self.invalid()) }
    }

    pub(crate) fn ip(&self) -> Result<IpAddr, DecodeError> {
        ip(self.bytes(16)?).ok_or_else(|| self.invalid())
    }

    pub(crate) fn socket_address(&self) -> Result<SocketAddr, DecodeError> {
        let (address, port) = self.bytes(18)?.split_last_chunk().ok_or_else(|| self.invalid())?;
        let address = ip(address).ok_or_else(|| self.invalid())?;
        Ok(SocketAddr::new(address, u16::from_be_bytes(*port)))
    }

    /// A row of entries of `N` bytes each.
    pub(crate) fn entries<const N: usize>(&self, limit: usize) -> Result<&'a [[u8; N]], DecodeError> {
        match self.bytes(limit * N)?.as_chunks() {
            (entries, []) => Ok(entries),
            _ => Err(self.invalid()),
        }
    }

    /// Puts the value into its place, which must be empty.
    pub(crate) fn fill<T>(&self, place: &mut Option<T>, value: T) -> Result<(), DecodeError> {
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(self.repeated()),
        }
    }

    pub(crate) fn repeated(&self) -> DecodeError {
        DecodeError::FieldRepeated { kind: self.kind, tag: self.tag }
    }

    pub(crate) fn invalid(&self) -> DecodeError {
        DecodeError::FieldInvalid { kind: self.kind, tag: self.tag }
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

// === impl Sink ===

/// Where fields are written: into a message, or nowhere, to learn their length.
pub(crate) trait Sink {
    fn field(&mut self, tag: u8, value: &[u8]);

    /// A text, cut at its limit: what a peer would refuse is never sent.
    fn text(&mut self, tag: u8, text: &str, limit: usize) {
        let text = &text[..text.floor_char_boundary(limit)];
        if !text.is_empty() {
            self.field(tag, text.as_bytes());
        }
    }

    fn ip(&mut self, tag: u8, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.field(tag, &ip.octets()),
            IpAddr::V6(ip) => self.field(tag, &ip.octets()),
        }
    }

    fn socket_address(&mut self, tag: u8, address: SocketAddr) {
        let mut value = [0; 18];
        let len = match address.ip() {
            IpAddr::V4(ip) => {
                value[..4].copy_from_slice(&ip.octets());
                4
            }
            IpAddr::V6(ip) => {
                value[..16].copy_from_slice(&ip.octets());
                16
            }
        };
        value[len..len + 2].copy_from_slice(&address.port().to_be_bytes());
        self.field(tag, &value[..len + 2]);
    }
}

impl Sink for BytesMut {
    fn field(&mut self, tag: u8, value: &[u8]) {
        debug_assert!(value.len() <= usize::from(u16::MAX), "every field has a limit below this");
        self.put_u8(tag);
        self.put_u16(value.len() as u16);
        self.put_slice(value);
    }
}

/// Counts the bytes that fields would take.
#[derive(Default)]
pub(crate) struct Count(pub(crate) usize);

impl Sink for Count {
    fn field(&mut self, _tag: u8, value: &[u8]) {
        self.0 += FIELD_HEAD + value.len();
    }
}

/// The value of a field that must be there.
pub(crate) fn require<T>(kind: u8, tag: u8, value: Option<T>) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::FieldMissing { kind, tag })
}
