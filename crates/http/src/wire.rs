//! HTTP/1.1 as it is spoken to targets (RFC 9112): encoding requests, decoding responses. Bytes in, values out; no
//! IO and no clock.
//!
//! Decoding is strict where two readers could disagree about where a message ends: a target that says two things
//! about its length is not believed at all.

use std::error::Error;
use std::fmt;
use std::mem::MaybeUninit;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode};

/// The most header fields of a response, options of its `Connection`, and trailer fields of a message.
const MAX_FIELDS: usize = 100;
/// The longest trailer section.
const MAX_TRAILERS: usize = 16 * 1024;
/// The longest chunk size that is read: 2^60 bytes are more than will ever come.
const MAX_CHUNK_DIGITS: u8 = 15;

/// What a target said wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// No response head as RFC 9112 section 4 has it.
    Head,
    /// More head than the limit, interim responses included.
    HeadTooLarge,
    /// Two lengths, a length beside a transfer coding, or a length that is no number.
    Length,
    /// A transfer coding other than a single `chunked`.
    Coding,
    /// A chunk, its size or its end are not as RFC 9112 section 7.1 has them.
    Chunk,
    /// More chunk extensions than the limit.
    Padding,
    /// Trailer fields that are none, or too many.
    Trailers,
    /// 101, and nobody had asked.
    Upgrade,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "not a response head",
            Self::HeadTooLarge => "response head too large",
            Self::Length => "contradictory or invalid length",
            Self::Coding => "transfer coding not understood",
            Self::Chunk => "invalid chunk",
            Self::Padding => "too many chunk extensions",
            Self::Trailers => "invalid trailers",
            Self::Upgrade => "an upgrade nobody asked for",
        })
    }
}

impl Error for Malformed {}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    /// Whether it is HTTP/1.1 rather than 1.0.
    pub(crate) http_11: bool,
    /// The reason phrase, if it is not the usual one.
    pub(crate) reason: Option<Bytes>,
    pub(crate) headers: HeaderMap,
}

impl ResponseHead {
    /// Reads a head from the front of `src`, and tells its length; `None` while the end of it has not come.
    pub(crate) fn decode(src: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        // Empty lines before a status line mean something to some parsers only.
        if src.first().is_some_and(|first| *first != b'H') {
            return Err(Malformed::Head);
        }
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let length = match parser.parse_response_with_uninit_headers(&mut response, src, &mut fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(Malformed::HeadTooLarge),
            Err(_) => return Err(Malformed::Head),
        };
        // One copy of the whole head; every value is a slice of it.
        let bytes = Bytes::copy_from_slice(&src[..length]);
        // And one more, to be signed.
        let mut headers = HeaderMap::with_capacity(response.headers.len() + 1);
        for field in response.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Head)?;
            let start = field.value.as_ptr().addr().wrapping_sub(src.as_ptr().addr());
            let value = if field.value.is_empty() {
                Bytes::new()
            } else {
                bytes.slice(start..start + field.value.len())
            };
            headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Malformed::Head)?);
        }
        if option_count(&headers) > MAX_FIELDS {
            return Err(Malformed::HeadTooLarge);
        }
        let status = StatusCode::from_u16(response.code.unwrap_or_default()).map_err(|_| Malformed::Head)?;
        let reason = response.reason.filter(|reason| Some(*reason) != status.canonical_reason());
        let reason = reason.map(|reason| Bytes::copy_from_slice(reason.as_bytes()));
        Ok(Some((Self { status, http_11: response.version == Some(1), reason, headers }, length)))
    }

    /// Whether the target keeps its connection open behind this response, as far as the head tells.
    pub(crate) fn keeps_alive(&self) -> bool {
        self.http_11 && !list_has(&self.headers, &CONNECTION, "close")
    }

    /// How the body's end is known (RFC 9112 section 6.3), the answer being one to `method` and claiming this
    /// [length](content_length).
    pub(crate) fn framing(&self, method: &Method, length: Option<u64>) -> Result<Framing, Malformed> {
        let coded = self.headers.contains_key(TRANSFER_ENCODING);
        if coded && (length.is_some() || !self.http_11) {
            return Err(Malformed::Length);
        }
        if coded && !is_chunked(&self.headers) {
            return Err(Malformed::Coding);
        }
        let bodiless = matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if method == Method::HEAD || bodiless || self.status.is_informational() {
            return Ok(Framing::Length(0));
        }
        Ok(match length {
            _ if coded => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::UntilEnd,
        })
    }
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    UntilEnd,
}

/// Where a head ends in `src`, as far as an empty line tells: the index behind it. `seen` bytes were searched before.
pub(crate) fn head_end(src: &[u8], seen: usize) -> Option<usize> {
    let start = seen.saturating_sub(3);
    let bytes = &src[start..];
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').find_map(|(index, _)| {
        let rest = &bytes[index + 1..];
        let blank = [&b"\n"[..], b"\r\n"].into_iter().find(|blank| rest.starts_with(blank))?;
        Some(start + index + 1 + blank.len())
    })
}

/// The one length a message claims, if it claims one. Repeated equal ones are one (RFC 9110 section 8.6). One beyond what
/// 63 bits hold is none: another reader would see a negative or a shorter one.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for text in value.as_bytes().split(|byte| *byte == b',') {
            let number = number(text.trim_ascii()).ok_or(Malformed::Length)?;
            if length.is_some_and(|length| length != number) {
                return Err(Malformed::Length);
            }
            length = Some(number);
        }
    }
    Ok(length)
}

/// Decimal digits, nothing else.
fn number(digits: &[u8]) -> Option<u64> {
    let (first, others) = digits.split_first()?;
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let number = others
        .iter()
        .try_fold(digit(first)?, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?));
    number.filter(|number| *number <= i64::MAX as u64)
}

/// Whether the transfer coding is `chunked` and nothing else, written once.
pub(crate) fn is_chunked(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TRANSFER_ENCODING).iter();
    let only = values.next().filter(|_| values.next().is_none());
    only.is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// Whether a comma-separated list field holds `token`, in any case.
pub(crate) fn list_has(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let mut tokens =
        headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// How many options the `Connection` fields hold, empty ones too. A message has no more fields than may be for them to
/// name, and comparing each field with each option would cost milliseconds.
pub(crate) fn option_count(headers: &HeaderMap) -> usize {
    let values = headers.get_all(CONNECTION).iter();
    values.map(|value| value.as_bytes().split(|byte| *byte == b',').count()).sum()
}

/// Writes the size line of a chunk; its data and [`CHUNK_END`] follow.
pub(crate) fn encode_chunk_size(dst: &mut BytesMut, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (size.max(1).ilog2() / 4) + 1;
    for place in (0..digits).rev() {
        dst.put_u8(DIGITS[(size >> (4 * place)) & 0xf]);
    }
    dst.put_slice(b"\r\n");
}

/// What follows the data of a chunk.
pub(crate) const CHUNK_END: &[u8] = b"\r\n";

/// Writes the last chunk and the trailer section.
pub(crate) fn encode_last_chunk(dst: &mut BytesMut, trailers: &HeaderMap) {
    dst.put_slice(b"0\r\n");
    for (name, value) in trailers {
        encode_field(dst, name.as_str(), value.as_bytes());
    }
    dst.put_slice(b"\r\n");
}

/// Writes one field line.
pub(crate) fn encode_field(dst: &mut BytesMut, name: &str, value: &[u8]) {
    dst.reserve(name.len() + value.len() + 4);
    dst.put_slice(name.as_bytes());
    dst.put_slice(b": ");
    dst.put_slice(value);
    dst.put_slice(b"\r\n");
}

// === ChunkDecoder ===

/// Decodes the chunked coding (RFC 9112 section 7.1), strictly: every line ends in CR LF, a size is 1 to 15 hex
/// digits, extensions are skipped up to a budget.
#[derive(Debug)]
pub(crate) struct ChunkDecoder {
    state: ChunkState,
    /// Of the present chunk.
    left: u64,
    digits: u8,
    padding: usize,
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Size,
    /// Spaces between a size and what may follow it.
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a trailer line, or of the empty one behind them.
    Trailer,
    TrailerLine,
    TrailerLf,
    EndLf,
}

/// What [`ChunkDecoder::decode`] found behind the framing it took.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// Nothing yet.
    More,
    /// So many bytes of data.
    Data(usize),
    /// The end of the body.
    End(HeaderMap),
}

impl ChunkDecoder {
    /// A decoder that takes up to `padding` bytes of extensions.
    pub(crate) const fn new(padding: usize) -> Self {
        Self { state: ChunkState::Size, left: 0, digits: 0, padding, trailers: Vec::new() }
    }

    /// Reads on: how many bytes of `src` were framing, and what follows them. Data is for the caller to take.
    pub(crate) fn decode(&mut self, src: &[u8]) -> Result<(usize, Chunk), Malformed> {
        for (index, &byte) in src.iter().enumerate() {
            if self.state == ChunkState::Data {
                let here = src.len() - index;
                let taken = usize::try_from(self.left).map_or(here, |left| left.min(here));
                self.left -= taken as u64;
                if self.left == 0 {
                    self.state = ChunkState::DataCr;
                }
                return Ok((index, Chunk::Data(taken)));
            }
            self.state = self.step(byte)?;
            if self.state == ChunkState::EndLf && byte == b'\n' {
                return Ok((index + 1, Chunk::End(self.take_trailers()?)));
            }
        }
        Ok((src.len(), Chunk::More))
    }

    fn step(&mut self, byte: u8) -> Result<ChunkState, Malformed> {
        use ChunkState::{
            Blank, Data, DataCr, DataLf, EndLf, Extension, Size, SizeLf, Trailer, TrailerLf, TrailerLine,
        };
        Ok(match (self.state, byte) {
            (Size, byte) if byte.is_ascii_hexdigit() => {
                if self.digits == MAX_CHUNK_DIGITS {
                    return Err(Malformed::Chunk);
                }
                self.digits += 1;
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left * 16 + u64::from(digit);
                Size
            }
            (Size, _) if self.digits == 0 => return Err(Malformed::Chunk),
            (Size | Blank, b' ' | b'\t') => self.pad(Blank)?,
            (Size | Blank, b';') => self.pad(Extension)?,
            (Size | Blank | Extension, b'\r') => SizeLf,
            // Tabs stand in quoted values; other control characters are what parsers disagree about.
            (Extension, byte) if byte == b'\t' || !byte.is_ascii_control() => self.pad(Extension)?,
            (SizeLf, b'\n') => {
                self.digits = 0;
                if self.left == 0 { Trailer } else { Data }
            }
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => Size,
            (Trailer, b'\r') => EndLf,
            (Trailer | TrailerLine, byte) if !matches!(byte, b'\r' | b'\n' | 0) => {
                self.keep(byte, TrailerLine)?
            }
            (TrailerLine, b'\r') => self.keep(byte, TrailerLf)?,
            (TrailerLf, b'\n') => self.keep(byte, Trailer)?,
            (EndLf, b'\n') => EndLf,
            (Trailer | TrailerLine | TrailerLf, _) => return Err(Malformed::Trailers),
            _ => return Err(Malformed::Chunk),
        })
    }

    fn pad(&mut self, next: ChunkState) -> Result<ChunkState, Malformed> {
        self.padding = self.padding.checked_sub(1).ok_or(Malformed::Padding)?;
        Ok(next)
    }

    fn keep(&mut self, byte: u8, next: ChunkState) -> Result<ChunkState, Malformed> {
        if self.trailers.len() == MAX_TRAILERS {
            return Err(Malformed::Trailers);
        }
        self.trailers.push(byte);
        Ok(next)
    }

    fn take_trailers(&mut self) -> Result<HeaderMap, Malformed> {
        let mut trailers = HeaderMap::new();
        if self.trailers.is_empty() {
            return Ok(trailers);
        }
        let mut lines = std::mem::take(&mut self.trailers);
        lines.extend_from_slice(b"\r\n");
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&lines, &mut fields) else {
            return Err(Malformed::Trailers);
        };
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Trailers)?;
            let value = HeaderValue::from_bytes(field.value).map_err(|_| Malformed::Trailers)?;
            trailers.append(name, value);
        }
        Ok(trailers)
    }
}

// === fuzzing ===

/// Reads `data` as a target's bytes: whole, and in two pieces split where its first byte says. Both must see the same.
///
/// # Panics
///
/// Where they do not.
pub(crate) fn check_split(data: &[u8]) {
    let Some((&split, wire)) = data.split_first() else { return };
    let split = usize::from(split).min(wire.len());
    let whole = ResponseHead::decode(wire);
    if let Ok(Some((head, length))) = &whole {
        assert_eq!(
            Some(*length),
            head_end(wire, 0).filter(|end| end == length),
            "a head ends at its empty line"
        );
        assert!((0..*length).all(|cut| matches!(ResponseHead::decode(&wire[..cut]), Ok(None))));
        let _ = content_length(&head.headers).and_then(|length| head.framing(&Method::GET, length));
    }
    let (body, end) = read_chunks(&[wire]);
    let parts = read_chunks(&[&wire[..split], &wire[split..]]);
    assert_eq!((&body, &end), (&parts.0, &parts.1), "the same, however it comes");
    if let Ok(Some(trailers)) = end {
        // What was understood is written, and means the same.
        let mut again = BytesMut::new();
        for piece in body.chunks(7) {
            encode_chunk_size(&mut again, piece.len());
            again.put_slice(piece);
            again.put_slice(CHUNK_END);
        }
        encode_last_chunk(&mut again, &trailers);
        assert_eq!(read_chunks(&[&again]), (body, Ok(Some(trailers))));
    }
}

/// The data of chunks, and their end if it came.
fn read_chunks(pieces: &[&[u8]]) -> (Vec<u8>, Result<Option<HeaderMap>, Malformed>) {
    let mut decoder = ChunkDecoder::new(1024);
    let mut body = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            match decoder.decode(rest) {
                Ok((framing, Chunk::More)) => rest = &rest[framing..],
                Ok((framing, Chunk::Data(data))) => {
                    body.extend_from_slice(&rest[framing..framing + data]);
                    rest = &rest[framing + data..];
                }
                Ok((_, Chunk::End(trailers))) => return (body, Ok(Some(trailers))),
                Err(error) => return (body, Err(error)),
            }
        }
    }
    (body, Ok(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<ResponseHead, Malformed> {
        ResponseHead::decode(text.as_bytes()).map(|decoded| decoded.unwrap().0)
    }

    fn framing(fields: &str) -> Result<Framing, Malformed> {
        let head = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"))?;
        head.framing(&Method::GET, content_length(&head.headers)?)
    }

    #[test]
    fn a_head_is_complete_at_its_empty_line_and_not_before() {
        let text = b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-Empty:\r\n\r\nok";
        let end = text.len() - 2;
        for cut in 0..end {
            assert!(matches!(ResponseHead::decode(&text[..cut]), Ok(None)), "{cut}");
        }
        let (head, length) = ResponseHead::decode(text).unwrap().unwrap();
        assert_eq!((length, head.status, head.reason.as_deref()), (end, StatusCode::OK, Some(&b"Fine"[..])));
        assert_eq!(head.headers["x-empty"], "");
        assert_eq!(head_end(text, 0), Some(end));
        assert_eq!(head_end(text, end - 1), Some(end));
    }

    #[test]
    fn h18_a_target_that_says_two_lengths_is_not_believed() {
        assert_eq!(framing("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), Err(Malformed::Length));
        assert_eq!(framing("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), Err(Malformed::Length));
        assert_eq!(framing("Content-Length: 5\r\nContent-Length: 6\r\n"), Err(Malformed::Length));
        assert_eq!(framing("Content-Length: 5, 6\r\n"), Err(Malformed::Length));
        assert_eq!(framing("Content-Length: 5, 5\r\nContent-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("Content-Length: 9223372036854775807\r\n"), Ok(Framing::Length(i64::MAX as u64)));
        for bad in [
            "+5",
            "0x5",
            "5_0",
            "-1",
            "",
            "9223372036854775808",
            "12345678901234567890",
            "99999999999999999999",
            "5 5",
        ] {
            assert_eq!(framing(&format!("Content-Length: {bad}\r\n")), Err(Malformed::Length), "{bad:?}");
        }
    }

    #[test]
    fn h18_only_a_single_chunked_is_a_transfer_coding() {
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
        for bad in [",chunked", "chunked,", "chunked, chunked", "xchunked", "identity", "gzip, chunked"] {
            assert_eq!(framing(&format!("Transfer-Encoding: {bad}\r\n")), Err(Malformed::Coding), "{bad:?}");
        }
        let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(framing(twice), Err(Malformed::Coding));
    }

    #[test]
    fn h20_bodiless_responses_have_none_whatever_length_they_name() {
        for status in ["204 No Content", "304 Not Modified"] {
            let head = head(&format!("HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\n")).unwrap();
            assert_eq!(head.framing(&Method::GET, Some(7)), Ok(Framing::Length(0)));
        }
        let head = head("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").unwrap();
        assert_eq!(head.framing(&Method::HEAD, Some(7)), Ok(Framing::Length(0)));
        assert_eq!(framing(""), Ok(Framing::UntilEnd));
    }

    #[test]
    fn h18_bad_heads_are_refused() {
        for bad in [
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert!(ResponseHead::decode(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert_eq!(ResponseHead::decode(many.as_bytes()).unwrap_err(), Malformed::HeadTooLarge);
    }

    #[test]
    fn h8_odd_chunk_sizes_are_refused() {
        for bad in [
            "+5\r\n",
            "0x5\r\n",
            " 5\r\n",
            "\r\n",
            "00000000000000005\r\n",
            "5\n",
            "5;a\nb\r\n",
            "5;a\rb\r\n",
            "5 5\r\n",
        ] {
            let (_, end) = read_chunks(&[format!("{bad}hello\r\n0\r\n\r\n").as_bytes()]);
            assert_eq!(end, Err(Malformed::Chunk), "{bad:?}");
        }
        let (_, end) = read_chunks(&[format!("5;{}\r\n", "a".repeat(1024)).as_bytes()]);
        assert_eq!(end, Err(Malformed::Padding));
    }

    #[test]
    fn h9_chunk_data_ends_with_its_line() {
        let (body, end) = read_chunks(&[b"5\r\nhelloX0\r\n\r\n"]);
        assert_eq!((body.as_slice(), end), (&b"hello"[..], Err(Malformed::Chunk)));
    }

    #[test]
    fn chunks_with_extensions_and_trailers_are_read_through_any_split() {
        let wire = b"5;name=\"v\"\r\nhello\r\n1 ;x\r\n!\r\n0\r\nExpires: now\r\nX: \r\n\r\n";
        for cut in 0..wire.len() {
            let (body, end) = read_chunks(&[&wire[..cut], &wire[cut..]]);
            assert_eq!(body, b"hello!");
            assert_eq!(end.unwrap().unwrap()["expires"], "now");
        }
    }

    #[test]
    fn sizes_are_written_in_hexadecimal() {
        for size in [0, 1, 15, 16, 255, 4096, 0xfff_ffff, usize::MAX] {
            let mut line = BytesMut::new();
            encode_chunk_size(&mut line, size);
            assert_eq!(line, format!("{size:x}\r\n"));
        }
    }

    #[test]
    fn any_bytes_are_read_the_same_whole_and_split() {
        for seed in [
            &b"\x09HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..],
            b"\x035\r\nhello\r\n0\r\nA: b\r\n\r\n",
            b"\x02a\r\n0123456789\r\n0\r\n\r\n",
        ] {
            check_split(seed);
            for index in 0..seed.len() {
                for byte in [0, b'\n', b'\r', b' ', b';', b'0', 0xff] {
                    let mut bytes = seed.to_vec();
                    bytes[index] = byte;
                    check_split(&bytes);
                }
            }
        }
    }
}
