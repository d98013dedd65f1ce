//! IRQLs.

use wdk_standin::wdk_sys::{KIRQL, ntddk::KeGetCurrentIrql};

pub(crate) const PASSIVE: KIRQL = 0;
pub(crate) const APC: KIRQL = 1;
pub(crate) const DISPATCH: KIRQL = 2;

pub(crate) fn current() -> KIRQL {
    // SAFETY: reads the processor's own task priority.
    unsafe { KeGetCurrentIrql() }
}
