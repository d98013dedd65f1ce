//! `wdk-sys`: types and constants at the root, functions in [`ntddk`].
//!
//! Nothing here owns data but the two variables of the KMDF binding, which
//! `FxDriverEntry` fills before any other code of the driver runs.

mod bindings;
mod constants;
#[doc(hidden)]
pub mod ctypes;
#[cfg(feature = "kmdf")]
mod entry;
mod macros;
#[cfg(feature = "imports")]
pub mod ntddk;
mod status;
#[cfg(feature = "imports")]
mod toolchain;
#[cfg(feature = "kmdf")]
pub mod wdf;

pub use bindings::*;
pub use constants::*;
pub use macros::*;
pub use status::*;
#[cfg(feature = "kmdf")]
pub use wdf::{WdfDriverGlobals, WdfFunctions};

#[cfg(feature = "kmdf")]
pub use crate::call_unsafe_wdf_function_binding;
