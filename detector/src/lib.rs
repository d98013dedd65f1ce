//! Modules, verdicts, findings and their wire format.
//!
//! Whose code is this? The crate answers that from plain values, twice:
//!
//! * in root mode, at the exit itself: [`verdict`] asks a [`registry::View`] and
//!   the caller fills an [`event::Event`]. That half has no allocation, no lock
//!   and no panic, and treats every byte that it reads as hostile, because
//!   rings and snapshots lie in memory which the guest shares;
//! * at `PASSIVE_LEVEL`, later: [`finding`] merges, numbers and names events,
//!   and [`wire`] is the form in which they reach the command-line tool.
//!
//! Nothing here executes a privileged instruction or calls the operating
//! system; it is all tested with `cargo test` on any machine.
//!
//! The feature `alloc` (on by default) adds the half that runs at
//! `PASSIVE_LEVEL`.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod event;
#[cfg(feature = "alloc")]
pub mod finding;
pub mod lifecycle;
pub mod registry;
pub mod verdict;
pub mod wire;
