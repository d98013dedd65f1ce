//! Nested page tables as pure functions.
//!
//! The crate turns addresses, memory types and rights into 64-bit table
//! entries and keeps one identity-mapped translation for the whole machine.
//! It touches no register and executes no privileged instruction: what it
//! needs from the machine comes in as numbers, what the machine must do comes
//! out as values ([`flush::Flush`], [`wx::Plan`]).
//!
//! **Who owns the data.** The hypervisor allocates every table before launch
//! and lends them for the life of the monitor ([`pool::Pool`]).
//!
//! **Who may call it.** Root mode, and guest context before the launch. No
//! function allocates, blocks, panics or loops without a bound that is written
//! down beside it.
//!
//! **Locking.** Tables are atomics and may be read at any time. Whoever changes
//! a [`space::Space`] holds the one transition lock of the machine; the lock
//! itself belongs to the caller.
//!
//! Manuals are cited by title and section: Intel SDM order number 325462-084,
//! AMD APM volume 2 publication 24593 revision 3.42.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod entry;
pub mod flush;
pub mod memtype;
pub mod pool;
pub mod private;
mod recent;
pub mod slot;
pub mod space;
pub mod table;
pub mod wx;
