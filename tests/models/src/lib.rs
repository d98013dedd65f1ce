//! Models of what cannot be tested by running it: every interleaving of a few
//! cores, and every value that weak memory lets them see, explored with loom.
//!
//! * [`revocation`]: taking rights away × stepping × leaving. It contains the
//!   hypervisor's own `shootdown` and `transition` (see `build.rs`); hardware
//!   and guest around them are the model's.
//! * [`variants`]: the same with one mistake each. The tests demand that the
//!   model notices every one.
//!
//! Host only. A test explores all schedules with a bounded number of
//! preemptions; the environment variable `LOOM_MAX_PREEMPTIONS` sets another bound.

#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is how a model tells of a fault"
)]

pub mod atomics;
pub mod revocation;

/// Copies of [`revocation`] with one mistake each.
#[expect(missing_docs, reason = "copies of documented modules")]
#[allow(
    dead_code,
    unused_variables,
    unused_imports,
    clippy::all,
    clippy::pedantic,
    reason = "a mistake may leave something unused"
)]
pub mod variants {
    include!(concat!(env!("OUT_DIR"), "/variants.rs"));
}
