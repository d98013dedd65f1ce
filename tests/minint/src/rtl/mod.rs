//! The run-time library: strings, versions, images, stacks, numbers.
//!
//! Functions of their arguments, with no state but what a driver passes in.
//! Unless its own comment says less, each is callable at any IRQL at which its
//! arguments may be touched.

mod ansi;
mod bitmap;
mod crt;
pub(crate) mod format;
mod guid;
mod image;
mod integer;
pub(crate) mod security;
mod stack;
pub(crate) mod status;
mod time;
pub(crate) mod unicode;
mod version;

pub(crate) use crt::bytes;
pub(crate) use version::BUILD;
