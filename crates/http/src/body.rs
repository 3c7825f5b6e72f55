use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyproxy_core::BoxError;
use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The body of a user's request, in whichever version of HTTP it comes.
pub struct UserBody(Kind);

enum Kind {
    Http1(Incoming),
    Http2(Stream),
    Empty,
}

struct Stream {
    stream: RecvStream,
    /// What the user said it would be, checked below.
    length: Option<u64>,
    data_ended: bool,
}

impl UserBody {
    pub(crate) const fn http1(body: Incoming) -> Self {
        Self(Kind::Http1(body))
    }

    pub(crate) const fn http2(stream: RecvStream, length: Option<u64>) -> Self {
        Self(Kind::Http2(Stream { stream, length, data_ended: false }))
    }

    pub(crate) const fn empty() -> Self {
        Self(Kind::Empty)
    }
}

impl fmt::Debug for UserBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Http1(_) => "UserBody::Http1",
            Kind::Http2(_) => "UserBody::Http2",
            Kind::Empty => "UserBody::Empty",
        })
    }
}

impl Body for UserBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Http1(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Http2(stream) => stream.poll_frame(cx).map_err(Into::into),
            Kind::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Http1(body) => body.is_end_stream(),
            Kind::Http2(body) => body.stream.is_end_stream(),
            Kind::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Http1(body) => body.size_hint(),
            Kind::Http2(body) => body.length.map_or_else(SizeHint::new, SizeHint::with_exact),
            Kind::Empty => SizeHint::with_exact(0),
        }
    }
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(data) => {
                    let data = data?;
                    // Read is taken: the target's pace is kept by not polling.
                    self.stream.flow_control().release_capacity(data.len())?;
                    if let Some(left) = &mut self.length {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}
