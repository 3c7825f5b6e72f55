use bytes::{Bytes, BytesMut};

/// A queue of bytes that costs about what it holds. (skeleton)
#[derive(Debug, Default)]
pub struct Chunks { head: Bytes, rest: Option<Box<(std::collections::VecDeque<Bytes>, BytesMut)>>, len: usize }

#[allow(unused_variables, missing_docs)]
impl Chunks {
    pub const fn new() -> Self { Self { head: Bytes::new(), rest: None, len: 0 } }
    pub fn len(&self) -> usize { self.len }
    pub fn is_empty(&self) -> bool { self.len == 0 }
    pub fn push(&mut self, data: Bytes) {}
    pub fn push_received(&mut self, data: Bytes) {}
    pub fn chunk(&self) -> &[u8] { &self.head }
    pub fn advance(&mut self, n: usize) {}
    pub fn pop(&mut self, max: usize) -> Bytes { Bytes::new() }
}
