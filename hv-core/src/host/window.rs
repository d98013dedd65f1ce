//! Windows into guest memory: a page of address space whose last-level entry is
//! pointed at one physical page for as long as it is looked at.
//!
//! Each core has its own windows, so no other core's translations are touched
//! and INVLPG on this core suffices. Only RAM is looked at (reading device
//! memory can have effects), except for the local APIC's own page.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use super::paging::{NO_EXECUTE, PRESENT, UNCACHED, WRITABLE};
use crate::instr;

/// First address of all windows. Root mode's page tables map nothing else in the
/// lower half, which is the user's in the guest.
const BASE: u64 = 0x6000_0000_0000;
/// Windows of a core: to its local APIC, and those of its [`Views`].
pub const WINDOWS: usize = 11;

/// Bytes of address space that the windows of `cores` processors take.
#[must_use]
pub const fn span(cores: usize) -> usize {
    cores * WINDOWS * 4096
}

/// Address of window `number` (below [`WINDOWS`]) of processor `core`.
#[must_use]
pub const fn address(core: usize, number: usize) -> u64 {
    BASE + (span(core) + number * 4096) as u64
}

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

/// A window that remembers what it shows, so that looking at the same page again
/// asks nobody whether that page may be looked at.
#[derive(Debug)]
pub struct View {
    window: Cell<Option<Window>>,
    shown: Cell<u64>,
}

/// What [`View`] keeps beside the page's address.
const SHOWN: u64 = 1;
const SHOWN_WRITABLE: u64 = 2;

impl View {
    /// Gives the view its window; it shows nothing yet.
    pub fn set(&self, window: Window) {
        self.window.set(Some(window));
        self.shown.set(0);
    }

    /// Address at which the page `page` is seen, if it is shown.
    #[must_use]
    #[inline]
    pub fn known(&self, page: u64) -> Option<u64> {
        if self.shown.get() & !SHOWN_WRITABLE != page | SHOWN {
            return None;
        }
        self.window.get().map(|window| window.va)
    }

    /// The same, if it may be written there.
    #[must_use]
    #[inline]
    pub fn known_writable(&self, page: u64) -> Option<u64> {
        if self.shown.get() != page | SHOWN | SHOWN_WRITABLE {
            return None;
        }
        self.window.get().map(|window| window.va)
    }

    /// Shows the frame behind `page`, a page of RAM; returns its address, `None`
    /// without a window.
    #[must_use]
    pub fn show(&self, page: u64, frame: u64) -> Option<u64> {
        let window = self.window.get()?;
        self.shown.set(page | SHOWN);
        Some(window.show(frame))
    }

    /// Shows a page of RAM that nothing hides, to be written.
    #[must_use]
    pub fn show_writable(&self, page: u64) -> Option<u64> {
        let window = self.window.get()?;
        self.shown.set(page | SHOWN | SHOWN_WRITABLE);
        Some(window.show_writable(page))
    }
}

/// A core's views of guest memory. What lies behind a page of RAM does not change
/// while a core is a guest; what is RAM can.
#[derive(Debug)]
pub struct Views {
    /// A page of code.
    pub code: View,
    /// A page of data.
    pub data: View,
    /// Page tables on the way to code, one a level: the same are walked again and
    /// again.
    pub code_tables: [View; 4],
    /// The same on the way to data.
    pub data_tables: [View; 4],
    /// The list of RAM that decided what is shown.
    epoch: Cell<usize>,
}

impl Views {
    /// Every view.
    pub fn each(&self) -> impl Iterator<Item = &View> {
        let tables = self.code_tables.iter().chain(&self.data_tables);
        [&self.code, &self.data].into_iter().chain(tables)
    }

    /// Forgets what is shown if the list of RAM is another one.
    #[inline]
    pub fn renew(&self, epoch: usize) {
        if self.epoch.get() != epoch {
            self.epoch.set(epoch);
            self.each().for_each(|view| view.shown.set(0));
        }
    }
}
