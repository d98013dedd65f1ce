//! The driver file's machine code, read back: which functions there are
//! (`image`), what each of them calls and touches (`function`), and what follows
//! for all that root mode can reach (`reach`).
//!
//! What the compiler made is judged here, not what the source says: an import, a
//! panic or a vector register that optimization brought in shows, and one that it
//! removed does not. Calls through pointers are followed where the code itself
//! names the table; the others must stand in a list of the case that asks.

mod entry;
mod function;
mod image;
mod reach;

pub(crate) use entry::check_stub;
pub(crate) use image::{Function, Image};
pub(crate) use reach::Reach;
