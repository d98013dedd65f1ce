//! Where the Windows bindings come from: the genuine crates on Windows, the
//! stand-ins of `tests/wdk` elsewhere.
//!
//! Names, types and signatures are the same, so this is the only place of the
//! driver that knows the difference.

#[cfg(feature = "wdk")]
pub(crate) use {wdk_alloc, wdk_sys};
#[cfg(all(feature = "standin", not(feature = "wdk")))]
pub(crate) use {wdk_standin::wdk_alloc, wdk_standin::wdk_sys};
