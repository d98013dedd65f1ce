//! `wdk`: debugger output and the checks every driver uses.

#[cfg(feature = "imports")]
mod print;
#[cfg(feature = "kmdf")]
pub mod wdf;

#[cfg(feature = "imports")]
pub use print::_print;

pub use crate::wdk_sys::NT_SUCCESS as nt_success;
#[cfg(feature = "imports")]
pub use crate::{
    __wdk_dbg as dbg, __wdk_print as print, __wdk_println as println,
    wdk_sys::PAGED_CODE as paged_code,
};

/// Stops in the debugger.
#[cfg(target_arch = "x86_64")]
pub fn dbg_break() {
    // SAFETY: a breakpoint trap; registers and memory stay as they are.
    unsafe { core::arch::asm!("int 3") };
}
