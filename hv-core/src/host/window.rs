//! Windows into guest memory: a page of address space whose last-level entry is
//! pointed at one physical page for as long as it is looked at.
//!
//! Each core has its own windows, so no other core's translations are touched
//! and INVLPG on this core suffices. Only RAM is looked at (reading device
//! memory can have effects), except for the local APIC's own page.

use core::sync::atomic::{AtomicU64, Ordering};

use super::paging::{NO_EXECUTE, PRESENT, UNCACHED, WRITABLE};
use crate::instr;

/// One page of address space in the host's page tables.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    va: u64,
    entry: *const AtomicU64,
}

impl Window {
    /// A window that shows nothing yet.
    #[must_use]
    pub const fn new(va: u64, entry: &AtomicU64) -> Self {
        Self { va, entry }
    }

    fn point(&self, value: u64) -> u64 {
        // SAFETY: the entry lies in the host's page tables, which live for as long
        // as any core is in root mode.
        let entry = unsafe { &*self.entry };
        if entry.load(Ordering::Relaxed) != value {
            entry.store(value, Ordering::Release);
            // SAFETY: root mode is CPL 0; the translation is this core's own.
            unsafe { instr::invlpg(self.va) };
        }
        self.va
    }

    /// Shows a page of RAM, read-only; returns its address.
    #[must_use]
    pub fn show(&self, physical: u64) -> u64 {
        self.point(physical & !0xFFF | PRESENT | NO_EXECUTE | 0x60)
    }

    /// Shows a page of RAM, writable; returns its address.
    #[must_use]
    pub fn show_writable(&self, physical: u64) -> u64 {
        self.point(physical & !0xFFF | PRESENT | WRITABLE | NO_EXECUTE | 0x60)
    }

    /// Shows a page of device registers, uncached and writable.
    #[must_use]
    pub fn show_device(&self, physical: u64) -> u64 {
        self.point(physical & !0xFFF | PRESENT | WRITABLE | NO_EXECUTE | UNCACHED | 0x60)
    }
}
