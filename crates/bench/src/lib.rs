//! What AnyProxy costs, part by part.
//!
//! The program of this package (`cargo run --release -p anyproxy-bench -- help`) measures whole gateways from
//! outside; this library holds what is measured from inside: the [`stack`] of the stock gateway over a terminal that
//! answers at once, and the [`cores`], each as one piece of work that can be repeated. Three users share them:
//! `cargo bench -p anyproxy-bench` (nanoseconds), `tests/allocations.rs` (allocations) and the `counts` program
//! (instructions, which do not wobble, against `budget.toml`).
//!
//! ```
//! for mut core in anyproxy_bench::cores::all() {
//!     core.repeat(3);
//! }
//! ```

pub mod stack;

pub mod cores;
