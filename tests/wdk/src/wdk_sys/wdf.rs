//! The binding of a KMDF driver to its framework.

use super::{PWDF_DRIVER_GLOBALS, WDFFUNC};

/// The framework's function table. `WdfVersionBind` fills it in.
#[allow(non_upper_case_globals)]
// SAFETY: the name that WdfDriverEntry.lib gives it; nothing else defines it.
#[unsafe(export_name = "WdfFunctions_01031")]
pub static mut WdfFunctions: *const WDFFUNC = core::ptr::null();

/// The framework's record of this driver, the first argument of every call.
#[allow(non_upper_case_globals)]
// SAFETY: as above.
#[unsafe(no_mangle)]
pub static mut WdfDriverGlobals: PWDF_DRIVER_GLOBALS = core::ptr::null_mut();

/// One function for each entry of the table, for the macro to call by name.
#[doc(hidden)]
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    missing_docs,
    non_snake_case
)]
pub mod __private {
    use crate::wdk_sys::*;

    include!(concat!(env!("OUT_DIR"), "/wdf_functions.rs"));
}
