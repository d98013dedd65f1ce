//! MiniNT: a small kernel in the shape of NT, on which the project's real driver
//! file runs under an emulator.
//!
//! It is built as `ntoskrnl.exe`, a PE with sections and an export directory, and
//! follows Microsoft's documentation of each routine, not the habits of any
//! driver. It is a verifier as well: each export checks its IRQL and arguments,
//! and a broken rule is a bugcheck that names it. `INTERNALS.md` tells which
//! folder owns what; each folder's `mod.rs` tells the rest.
#![no_std]
#![allow(non_snake_case, reason = "exports bear Microsoft's names")]
#![allow(non_upper_case_globals, reason = "exports bear Microsoft's names")]
#![allow(
    clippy::missing_safety_doc,
    reason = "what a caller of an export promises is on Microsoft's page of it"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_ptr_alignment,
    reason = "registers, table entries and C types are cut to their parts on purpose; the target is x86-64"
)]
#![allow(
    clippy::must_use_candidate,
    clippy::missing_panics_doc,
    reason = "nobody links this crate: its users are its own folders and drivers"
)]

extern crate alloc;

#[macro_use]
mod macros;

pub mod hal;
pub mod ke;
pub mod mm;
pub mod ps;

#[cfg(feature = "core-only")]
mod selftest;
mod start;

// The executive (owner: io, who edits this list); left out by `core-only`.
#[cfg(not(feature = "core-only"))]
pub mod cm;
#[cfg(not(feature = "core-only"))]
pub mod dbg;
#[cfg(not(feature = "core-only"))]
pub mod ex;
#[cfg(not(feature = "core-only"))]
pub mod io;
#[cfg(not(feature = "core-only"))]
pub mod ldr;
#[cfg(not(feature = "core-only"))]
pub mod link;
#[cfg(not(feature = "core-only"))]
pub mod machine;
#[cfg(not(feature = "core-only"))]
pub mod ob;
#[cfg(not(feature = "core-only"))]
pub mod po;
#[cfg(not(feature = "core-only"))]
pub mod rtl;
#[cfg(not(feature = "core-only"))]
pub mod se;
#[cfg(not(feature = "core-only"))]
pub mod verifier;
