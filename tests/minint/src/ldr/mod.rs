//! The loader: driver images from the boot image's file table into kernel memory,
//! and the list of what is loaded.
//!
//! The table of modules belongs to this folder, behind one lock that is held for
//! look-ups and changes only, never while foreign code runs. Loading and
//! unloading happen one at a time, at PASSIVE_LEVEL ([`load`]). What must be
//! answered at any IRQL, whose address is this, comes from lock-free slots.

mod export;
mod hal_image;
mod list;
mod load;
mod module;
pub(crate) mod notify;
pub(crate) mod pe;
mod query;
mod slots;

pub(crate) use load::{discard_init, load, release};
pub(crate) use module::{Module, Section, kernel_init_discarded, modules, start};
pub(crate) use slots::{NOBODY, base_of, describe, owner_of};
