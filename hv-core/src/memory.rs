//! Guest memory as root mode sees it: through windows, RAM only, never faulting.

use ept::addr::{Gpa, Gva, Hpa};

use crate::host::window::View;
use crate::monitor::Guest;
use crate::percpu::Core;
use crate::step::WINDOW;
use crate::walk::{self, Paging, Translation};
use crate::{in_either, instr};

/// An operand in guest memory.
#[derive(Debug)]
pub struct Operand {
    address: u64,
    size: u8,
}

#[expect(clippy::cast_possible_truncation, reason = "the size says it")]
impl Operand {
    /// Reads it, zero-extended.
    #[must_use]
    pub fn load(&self) -> u64 {
        let address = self.address;
        match self.size {
            // SAFETY: the window shows the page; the bytes end inside it; the
            // processor loads at any alignment.
            1 => u64::from(unsafe { instr::load8(address) }),
            // SAFETY: as above.
            2 => u64::from(unsafe { instr::load16(address) }),
            // SAFETY: as above.
            4 => u64::from(unsafe { instr::load32(address) }),
            // SAFETY: as above.
            _ => unsafe { instr::load64(address) },
        }
    }

    /// Stores it, by one instruction.
    pub fn store(&self, value: u64) {
        let address = self.address;
        match self.size {
            // SAFETY: the window shows the page, writable; the bytes end inside it;
            // the processor stores at any alignment.
            1 => unsafe { instr::store8(address, value as u8) },
            // SAFETY: as above.
            2 => unsafe { instr::store16(address, value as u16) },
            // SAFETY: as above.
            4 => unsafe { instr::store32(address, value as u32) },
            // SAFETY: as above.
            _ => unsafe { instr::store64(address, value) },
        }
    }
}

/// The memory of the guest on one core.
#[derive(Debug)]
pub struct GuestMemory<'a> {
    core: &'a Core,
    paging: Paging,
    cr3: u64,
}

impl<'a> GuestMemory<'a> {
    /// The memory as seen with the given paging mode and CR3.
    #[must_use]
    pub fn new(core: &'a Core, paging: Paging, cr3: u64) -> Self {
        core.state.views.renew(core.hypervisor().ram.epoch());
        Self { core, paging, cr3 }
    }

    /// The frame behind a page of guest RAM: the guest's view, so that what is
    /// hidden from the guest is not shown through root mode either.
    fn frame(&self, page: u64) -> Option<u64> {
        let hypervisor = self.core.hypervisor();
        if !hypervisor.ram.get().contains(page) {
            return None;
        }
        let gpa = Gpa::new(page);
        let shown = in_either!(hypervisor.nested()?, space => space.frame(gpa));
        Some(shown.map_or(page, Hpa::as_u64))
    }

    /// Address of a page of RAM in a view of this core's, valid until the view is
    /// turned to another page.
    #[inline]
    fn see(&self, view: &View, page: u64) -> Option<u64> {
        match view.known(page) {
            Some(address) => Some(address),
            None => self.turn(view, page),
        }
    }

    #[cold]
    fn turn(&self, view: &View, page: u64) -> Option<u64> {
        view.show(page, self.frame(page)?)
    }

    /// Translates a linear address of data.
    #[must_use]
    pub fn translate(&self, gva: Gva) -> Option<Translation> {
        self.walk(&self.core.state.views.data_tables, gva)
    }

    /// Translates a linear address of code. (Code and data lie apart, so each way
    /// keeps its tables in view.)
    #[must_use]
    pub fn translate_code(&self, gva: Gva) -> Option<Translation> {
        self.walk(&self.core.state.views.code_tables, gva)
    }

    #[inline]
    fn walk(&self, tables: &[View; 4], gva: Gva) -> Option<Translation> {
        walk::translate(self.paging, self.cr3, gva, |level, gpa| {
            let view = &tables[usize::from(level & 3)];
            let address = self.see(view, gpa & !0xFFF)? + (gpa & 0xFF8);
            // SAFETY: the view shows this page of RAM to this core.
            Some(unsafe { (address as *const u64).read_volatile() })
        })
    }

    /// Address of a page of RAM, valid until the next use of the data view.
    #[inline]
    fn show(&self, gpa: Gpa) -> Option<u64> {
        self.see(&self.core.state.views.data, gpa.page_base().as_u64())
    }

    /// Copies a page of RAM to memory of ours. `false` when it is no RAM.
    pub fn copy_page(&self, gpa: Gpa, to: *mut [u8; 4096]) -> bool {
        let Some(address) = self.show(gpa) else {
            return false;
        };
        // SAFETY: the window shows a whole page; `to` is a whole page of the
        // caller's; the guest may write the page meanwhile, which a copy of bytes
        // tolerates.
        unsafe { core::ptr::copy_nonoverlapping(address as *const u8, to.cast::<u8>(), 4096) };
        true
    }

    /// Compares a page of RAM with a copy of ours: the first and the last offset
    /// that differ, or `None`.
    #[must_use]
    pub fn difference(&self, gpa: Gpa, before: &[u8; 4096]) -> Option<(u16, u16)> {
        self.differing(gpa, before, 0, 4096)
    }

    /// Compares `length` bytes from `start` on, both multiples of 8.
    fn differing(
        &self,
        gpa: Gpa,
        before: &[u8; 4096],
        start: usize,
        length: usize,
    ) -> Option<(u16, u16)> {
        let address = self.show(gpa)?;
        let (chunks, _) = before.as_chunks::<8>();
        let chunks = chunks.iter().enumerate().skip(start / 8).take(length / 8);
        let mut found: Option<(u64, u64)> = None;
        for (index, old) in chunks {
            let base = index as u64 * 8;
            // SAFETY: the view shows a whole page; the index is below 512.
            let now = unsafe { ((address + base) as *const u64).read_volatile() };
            let changed = now ^ u64::from_le_bytes(*old);
            if changed != 0 {
                let last = base + 7 - u64::from(changed.leading_zeros() / 8);
                let first = match found {
                    Some((first, _)) => first,
                    None => base + u64::from(changed.trailing_zeros() / 8),
                };
                found = Some((first, last));
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 4096")]
        found.map(|(first, last)| (first as u16, last as u16))
    }

    /// Copies the [`WINDOW`] bytes around `gpa` to the same place in a page of ours.
    pub fn copy_window(&self, gpa: Gpa, to: *mut [u8; 4096]) {
        let Some(address) = self.show(gpa) else {
            return;
        };
        let first = window_start(gpa);
        for offset in (first..first + WINDOW).step_by(8) {
            // SAFETY: the view shows a whole page; the window lies inside it, at a
            // multiple of 8.
            let word = unsafe { ((address + offset as u64) as *const u64).read_volatile() };
            // SAFETY: the same offset in the caller's page.
            let to = unsafe { to.cast::<u8>().add(offset) };
            // SAFETY: as above.
            unsafe { to.cast::<u64>().write_unaligned(word) };
        }
    }

    /// Compares what [`Self::copy_window`] copied with what is there now: the first
    /// and the last offset that differ, or `None`.
    #[must_use]
    pub fn window_difference(&self, gpa: Gpa, before: &[u8; 4096]) -> Option<(u16, u16)> {
        let first = window_start(gpa);
        self.differing(gpa, before, first, WINDOW)
    }

    /// Copies the bytes of the instruction at `rip`, whose translation is `first`;
    /// returns how many could be read.
    #[must_use]
    pub fn code(&self, rip: Gva, first: &Translation, to: &mut [u8; 15]) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "below 4096")]
        let offset = rip.page_offset() as usize;
        let here = (4096 - offset).min(to.len());
        let (head, tail) = to.split_at_mut(here);
        if !self.code_bytes(first.gpa, offset, head) {
            return 0;
        }
        if tail.is_empty() {
            return here;
        }
        let next = Gva::new(rip.as_u64().wrapping_add(here as u64));
        match self.translate_code(next) {
            Some(found) if self.code_bytes(found.gpa, 0, tail) => here + tail.len(),
            _ => here,
        }
    }

    /// Copies bytes of a page of code that end inside it. `false` when it is no RAM.
    fn code_bytes(&self, gpa: Gpa, offset: usize, to: &mut [u8]) -> bool {
        let page = gpa.page_base().as_u64();
        let Some(address) = self.see(&self.core.state.views.code, page) else {
            return false;
        };
        let address = address + offset as u64;
        if to.len() == 15 && offset <= 4080 {
            // SAFETY: the view shows a whole page, and the bytes end inside it.
            let low = unsafe { instr::load64(address) };
            // SAFETY: as above.
            let high = unsafe { instr::load64(address + 8) };
            let both = u128::from(high) << 64 | u128::from(low);
            to.copy_from_slice(&both.to_le_bytes()[..15]);
            return true;
        }
        for (index, byte) in to.iter_mut().enumerate() {
            // SAFETY: as above.
            *byte = unsafe { instr::load8(address + index as u64) };
        }
        true
    }

    /// `size` (1, 2, 4 or 8) bytes that lie in one page of RAM, to be read and
    /// stored; valid until the next use of the data view on this core. `None` when
    /// they are no RAM, or hidden.
    #[must_use]
    pub fn operand(&self, gpa: Gpa, size: u8) -> Option<Operand> {
        let page = gpa.page_base().as_u64();
        if gpa.page_offset() + u64::from(size) > 4096 {
            return None;
        }
        let view = &self.core.state.views.data;
        let base = match view.known_writable(page) {
            Some(address) => address,
            None if self.frame(page)? == page => view.show_writable(page)?,
            None => return None,
        };
        Some(Operand {
            address: base + gpa.page_offset(),
            size,
        })
    }

    /// Copies some bytes of a page; bytes past its end are left alone.
    pub fn bytes(&self, gpa: Gpa, offset: usize, to: &mut [u8]) {
        let Some(address) = self.show(gpa) else {
            return;
        };
        let count = to.len().min(4096_usize.saturating_sub(offset));
        // SAFETY: the offset is at most the end of the page that the window shows.
        let from = unsafe { (address as *const u8).add(offset.min(4096)) };
        // SAFETY: the bytes end inside the page and inside `to`; the guest may
        // write its page meanwhile, which a copy of bytes tolerates.
        unsafe { core::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), count) };
    }
}

/// Where what is compared around an address begins: at a multiple of 8, so that all
/// of it lies in the page.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "below 4096")]
pub fn window_start(gpa: Gpa) -> usize {
    (gpa.page_offset() as usize & !7).min(4096 - WINDOW)
}

impl Guest for GuestMemory<'_> {
    fn read_page(&mut self, gpa: Gpa, page: &mut [u8; 4096]) -> bool {
        self.copy_page(gpa, page)
    }

    fn translate(&mut self, gva: Gva) -> Option<Gpa> {
        GuestMemory::translate(self, gva).map(|found| found.gpa)
    }

    fn read_u64(&mut self, gva: Gva) -> Option<u64> {
        let first = GuestMemory::translate(self, gva)?;
        if gva.page_offset() <= 4088 {
            let mut bytes = [0; 8];
            self.show(first.gpa)?;
            #[expect(clippy::cast_possible_truncation, reason = "below 4096")]
            self.bytes(first.gpa, gva.page_offset() as usize, &mut bytes);
            return Some(u64::from_le_bytes(bytes));
        }
        // The eight bytes lie in two pages.
        let mut bytes = [0; 8];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let at = Gva::new(gva.as_u64().wrapping_add(index as u64));
            let found = GuestMemory::translate(self, at)?;
            self.show(found.gpa)?;
            #[expect(clippy::cast_possible_truncation, reason = "below 4096")]
            self.bytes(
                found.gpa,
                at.page_offset() as usize,
                core::slice::from_mut(byte),
            );
        }
        Some(u64::from_le_bytes(bytes))
    }
}
