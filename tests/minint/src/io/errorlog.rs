//! Error log entries: written to COM1.
//!
//! IRQL at most DISPATCH_LEVEL.

use core::ffi::c_void;

use wdk_standin::wdk_sys::{IO_ERROR_LOG_PACKET, PVOID, UCHAR};

use crate::ex::pool;
use crate::ke::irql::{DISPATCH_LEVEL, require_irql};
use crate::ob::argument::borrow;

/// Tag of the entries (`IoEr`).
const TAG: u32 = u32::from_le_bytes(*b"IoEr");
/// `ERROR_LOG_MAXIMUM_SIZE`.
const LARGEST: UCHAR = 0xF0;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoAllocateErrorLogEntry(_object: PVOID, size: UCHAR) -> PVOID {
    require_irql(DISPATCH_LEVEL, "IoAllocateErrorLogEntry");
    if size > LARGEST || usize::from(size) < size_of::<IO_ERROR_LOG_PACKET>() {
        return core::ptr::null_mut();
    }
    pool::allocate(usize::from(size), TAG)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoWriteErrorLogEntry(entry: PVOID) {
    const API: &str = "IoWriteErrorLogEntry";
    require_irql(DISPATCH_LEVEL, API);
    let packet = &*borrow!(entry.cast::<IO_ERROR_LOG_PACKET>(), API);
    crate::log!(
        "event log: error {:#010x}, unique value {:#x}, final status {:#010x}",
        packet.ErrorCode,
        packet.UniqueErrorValue,
        packet.FinalStatus
    );
    pool::free(entry.cast::<c_void>(), TAG);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoFreeErrorLogEntry(entry: PVOID) {
    require_irql(DISPATCH_LEVEL, "IoFreeErrorLogEntry");
    pool::free(entry, TAG);
}
