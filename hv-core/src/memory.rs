//! Guest memory as root mode sees it: through windows, RAM only, never faulting.

use ept::addr::{Gpa, Gva, Hpa};

use crate::instr;
use crate::monitor::Guest;
use crate::percpu::Core;
use crate::step::WINDOW;
use crate::walk::{self, Paging, Translation};

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
    pub const fn new(core: &'a Core, paging: Paging, cr3: u64) -> Self {
        Self { core, paging, cr3 }
    }

    /// The frame behind a page of guest RAM: the guest's view, so that what is
    /// hidden from the guest is not shown through root mode either.
    fn frame(&self, gpa: u64) -> Option<u64> {
        let hypervisor = self.core.hypervisor();
        if !hypervisor.ram.get().contains(gpa) {
            return None;
        }
        let shown = hypervisor.nested()?.frame(Gpa::new(gpa));
        Some(shown.map_or(gpa & !0xFFF, Hpa::as_u64))
    }

    fn quadword(&self, gpa: u64) -> Option<u64> {
        let frame = self.frame(gpa)?;
        let window = self.core.state.walk_window.get()?;
        let address = window.show(frame) + (gpa & 0xFF8);
        // SAFETY: the window shows this page of RAM to this core.
        Some(unsafe { (address as *const u64).read_volatile() })
    }

    /// Translates a linear address.
    #[must_use]
    pub fn translate(&self, gva: Gva) -> Option<Translation> {
        walk::translate(self.paging, self.cr3, gva, |gpa| self.quadword(gpa))
    }

    /// Address of a page of RAM in the data window, valid until the next use of
    /// that window on this core.
    fn show(&self, gpa: Gpa) -> Option<u64> {
        let frame = self.frame(gpa.page_base().as_u64())?;
        Some(self.core.state.data_window.get()?.show(frame))
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
        let address = self.show(gpa)?;
        let (chunks, _) = before.as_chunks::<8>();
        let now = |index: usize| {
            let word = (address + index as u64 * 8) as *const u64;
            // SAFETY: the window shows a whole page; the index is below 512.
            unsafe { word.read_volatile() }
        };
        let mut first = None;
        let mut last = 0;
        for (index, old) in chunks.iter().enumerate() {
            let changed = now(index) ^ u64::from_le_bytes(*old);
            if changed != 0 {
                let base = index * 8;
                first.get_or_insert(base + changed.trailing_zeros() as usize / 8);
                last = base + 7 - changed.leading_zeros() as usize / 8;
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 4096")]
        first.map(|first| (first as u16, last as u16))
    }

    /// Copies the [`WINDOW`] bytes from `gpa` on, as far as its page goes, to the
    /// same place in a page of ours.
    pub fn copy_window(&self, gpa: Gpa, to: *mut [u8; 4096]) {
        let Some(address) = self.show(gpa) else {
            return;
        };
        let (first, end) = window(gpa);
        // SAFETY: the offset is inside the page that the window shows.
        let from = unsafe { (address as *const u8).add(first) };
        // SAFETY: the same offset in the caller's page.
        let to = unsafe { to.cast::<u8>().add(first) };
        // SAFETY: both ranges end inside their pages; the guest may write its own
        // meanwhile, which a copy of bytes tolerates.
        unsafe { core::ptr::copy_nonoverlapping(from, to, end - first) };
    }

    /// Compares what [`Self::copy_window`] copied with what is there now: the first
    /// and the last offset that differ, or `None`.
    #[must_use]
    pub fn window_difference(&self, gpa: Gpa, before: &[u8; 4096]) -> Option<(u16, u16)> {
        let mut now = [0; WINDOW];
        let (first, end) = window(gpa);
        let now = now.get_mut(..end - first)?;
        self.bytes(gpa, first, now);
        let old = before.get(first..end)?;
        if now == old {
            return None;
        }
        let differs = |(now, old): &(&u8, &u8)| now != old;
        let from = now.iter().zip(old).position(|pair| differs(&pair))?;
        let to = now.iter().zip(old).rposition(|pair| differs(&pair))?;
        #[expect(clippy::cast_possible_truncation, reason = "below 4096")]
        Some(((first + from) as u16, (first + to) as u16))
    }

    /// Copies the bytes of the instruction at `rip`, whose translation is `first`;
    /// returns how many could be read.
    #[must_use]
    pub fn code(&self, rip: Gva, first: &Translation, to: &mut [u8; 15]) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "below 4096")]
        let offset = rip.page_offset() as usize;
        let here = (4096 - offset).min(to.len());
        let (head, tail) = to.split_at_mut(here);
        if self.show(first.gpa).is_none() {
            return 0;
        }
        self.bytes(first.gpa, offset, head);
        if tail.is_empty() {
            return here;
        }
        let next = Gva::new(rip.as_u64().wrapping_add(here as u64));
        match self.translate(next) {
            Some(found) if self.show(found.gpa).is_some() => {
                self.bytes(found.gpa, 0, tail);
                here + tail.len()
            }
            _ => here,
        }
    }

    /// `size` (1, 2, 4 or 8) bytes that lie in one page of RAM, to be read and
    /// stored; valid until the next use of the data window on this core. `None` when
    /// they are no RAM, or hidden.
    #[must_use]
    pub fn operand(&self, gpa: Gpa, size: u8) -> Option<Operand> {
        let page = gpa.page_base().as_u64();
        if self.frame(page)? != page || gpa.page_offset() + u64::from(size) > 4096 {
            return None;
        }
        let window = self.core.state.data_window.get()?;
        Some(Operand {
            address: window.show_writable(page) + gpa.page_offset(),
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

/// The first and the end offset of what is compared around an address.
#[expect(clippy::cast_possible_truncation, reason = "below 4096")]
fn window(gpa: Gpa) -> (usize, usize) {
    let first = gpa.page_offset() as usize;
    (first, (first + WINDOW).min(4096))
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
