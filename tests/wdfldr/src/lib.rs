//! WDFLDR.SYS: the Kernel-Mode Driver Framework 1.31 for non-PnP drivers, on
//! documented WDM calls only.
//!
//! A KMDF driver imports `WdfVersionBind` from this image and gets a table of
//! 458 functions ([`table`]). Those a software-only driver needs behave as
//! Microsoft documents them; any other bugchecks and names its index. The
//! framework is a verifier as well: a broken rule prints one line that names the
//! rule and bugchecks with WDF_VIOLATION ([`nt::violation`]).
//!
//! Who owns what: [`object`] has every object of every driver under one spin
//! lock; a [`queue`] has its requests under its own; a [`request`] its state
//! under its own. Order: queue, then request, then object store; none is held
//! across a call into a driver or into the I/O manager, except IRP fields.
//! The pure parts ([`object::store`], [`queue::state`], [`sddl`]) are tested on
//! the host; the rest exists only in the image.
#![cfg_attr(not(test), no_std)]
// On the host only the pure parts exist: some of what they offer has no caller.
#![cfg_attr(test, allow(dead_code))]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the image has no public API"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::doc_markdown,
    reason = "x64 only: an address fits, sizes of structures are small; IRQLs are names"
)]

extern crate alloc;

mod object;
mod queue;
mod sddl;

#[cfg(not(test))]
mod bind;
#[cfg(not(test))]
mod call;
#[cfg(not(test))]
mod client;
#[cfg(not(test))]
mod device;
#[cfg(not(test))]
mod driver;
#[cfg(not(test))]
mod file;
#[cfg(not(test))]
mod image;
#[cfg(not(test))]
mod lock;
#[cfg(not(test))]
mod memory;
#[cfg(not(test))]
mod nt;
#[cfg(not(test))]
mod registry;
#[cfg(not(test))]
mod request;
#[cfg(not(test))]
mod string;
#[cfg(not(test))]
mod table;
#[cfg(not(test))]
mod timing;
