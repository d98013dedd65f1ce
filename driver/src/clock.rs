//! The time of day, in the system's unit. Any IRQL.

use crate::wdk_crates::wdk_sys::{LARGE_INTEGER, ntddk::KeQuerySystemTimePrecise};

/// Units of 100 ns since 1601 (UTC).
pub(crate) fn now() -> u64 {
    let mut time = LARGE_INTEGER::default();
    // SAFETY: `time` is ours.
    unsafe { KeQuerySystemTimePrecise(&raw mut time) };
    // SAFETY: the call has filled the whole union.
    let time = unsafe { time.QuadPart };
    u64::try_from(time).unwrap_or(0)
}
