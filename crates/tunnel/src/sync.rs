//! What a stream's handle and the driver meet by: the standard library's, and in this crate's unit tests Shuttle's,
//! which plays the ways in which their steps can fall.

#[cfg(test)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(test))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
