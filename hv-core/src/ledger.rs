//! Every block of memory that a start took, so that a stop or a rollback gives
//! all of it back, and so that all private blocks can be hidden.
//!
//! The list itself lives in a block from the platform: a kernel stack is small.

use crate::platform::{Platform, Region};
use crate::seeded::{self, Planted};

/// Who may see a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Root mode only: the guest finds a dummy frame in its place.
    Private,
    /// Both sides: data that root mode does not trust.
    Shared,
    /// The guest only: the dummy frame, this list.
    Plain,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    region: Region,
    visibility: Visibility,
}

/// The list of blocks of one start.
#[derive(Debug)]
pub struct Ledger {
    own: Region,
    count: usize,
}

const PAGES: usize = 4;
const CAPACITY: usize = PAGES * 4096 / size_of::<Entry>();

impl Ledger {
    /// An empty list.
    #[must_use]
    pub fn new(platform: &dyn Platform) -> Option<Self> {
        let own = platform.allocate(PAGES * 4096)?;
        Some(Self { own, count: 0 })
    }

    fn entries(&self) -> *mut Entry {
        self.own.va as *mut Entry
    }

    /// Takes a block and remembers it.
    pub fn allocate(
        &mut self,
        platform: &dyn Platform,
        bytes: usize,
        visibility: Visibility,
    ) -> Option<Region> {
        if self.count >= CAPACITY || seeded::allocation_fails(self.count) {
            return None;
        }
        let bytes = bytes.next_multiple_of(4096).max(4096);
        let region = platform.allocate(bytes)?;
        // SAFETY: below the capacity, so inside the list's own block.
        let slot = unsafe { self.entries().add(self.count) };
        // SAFETY: as above; the block is writable and nobody else's.
        unsafe { slot.write(Entry { region, visibility }) };
        self.count += 1;
        Some(region)
    }

    /// The blocks of one visibility.
    pub fn regions(&self, visibility: Visibility) -> impl Iterator<Item = Region> + '_ {
        // SAFETY: the first `count` entries have been written and are not changed
        // while `self` is borrowed.
        let entries = unsafe { core::slice::from_raw_parts(self.entries(), self.count) };
        entries
            .iter()
            .filter(move |entry| entry.visibility == visibility)
            .map(|entry| entry.region)
    }

    /// Bytes of one visibility.
    #[must_use]
    pub fn bytes(&self, visibility: Visibility) -> usize {
        self.regions(visibility).map(|region| region.bytes).sum()
    }

    /// Gives everything back.
    ///
    /// # Safety
    /// No core is in root mode or will be with this memory.
    pub unsafe fn release(self, platform: &dyn Platform) {
        let kept = usize::from(seeded::is(Planted::LeakBlock));
        for index in kept..self.count {
            // SAFETY: below the count.
            let slot = unsafe { self.entries().add(index) };
            // SAFETY: written when it was allocated.
            let entry = unsafe { slot.read() };
            // SAFETY: the caller's promise.
            unsafe { platform.free(entry.region) };
        }
        // SAFETY: the list is not used any more.
        unsafe { platform.free(self.own) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{ImageSection, MAX_IMAGE_SECTIONS, Ram};
    use core::cell::{Cell, RefCell};
    use ept::addr::Hpa;
    use std::boxed::Box;
    use std::vec::Vec;

    #[repr(C, align(4096))]
    struct Page([u8; 4096]);

    /// Hands out plain memory, `left` times, and notes what comes back.
    struct Memory {
        left: Cell<usize>,
        taken: RefCell<Vec<Region>>,
        freed: RefCell<Vec<Region>>,
    }

    impl Memory {
        fn new(left: usize) -> Self {
            Self {
                left: Cell::new(left),
                taken: RefCell::new(Vec::new()),
                freed: RefCell::new(Vec::new()),
            }
        }
    }

    // SAFETY: what is handed out is page-aligned, zeroed and never used again.
    unsafe impl Platform for Memory {
        fn cpu_count(&self) -> u32 {
            1
        }

        fn allocate(&self, bytes: usize) -> Option<Region> {
            assert!(bytes > 0 && bytes.is_multiple_of(4096));
            self.left.set(self.left.get().checked_sub(1)?);
            let pages: Vec<Page> = (0..bytes / 4096).map(|_| Page([0; 4096])).collect();
            let va = Box::leak(pages.into_boxed_slice()).as_mut_ptr() as u64;
            let region = Region {
                va,
                pa: Hpa::new(va),
                bytes,
            };
            self.taken.borrow_mut().push(region);
            Some(region)
        }

        unsafe fn free(&self, region: Region) {
            self.freed.borrow_mut().push(region);
        }

        fn physical_address(&self, va: u64) -> Option<Hpa> {
            Some(Hpa::new(va))
        }

        fn run_on(&self, _: u32, _: &mut dyn FnMut()) -> bool {
            false
        }

        fn ram(&self) -> Option<Ram> {
            None
        }

        fn image_sections(&self, _: &mut [ImageSection; MAX_IMAGE_SECTIONS]) -> usize {
            0
        }

        fn random(&self) -> [u64; 2] {
            [0; 2]
        }
    }

    fn release(ledger: Ledger, memory: &Memory) {
        // SAFETY: there is no root mode here.
        unsafe { ledger.release(memory) };
    }

    /// Each block in the order in which it was taken, the list's own last.
    fn all_came_back(memory: &Memory) -> bool {
        let mut taken = memory.taken.borrow().clone();
        taken.rotate_left(1);
        *memory.freed.borrow() == taken
    }

    #[test]
    fn blocks_are_told_by_who_may_see_them_and_all_come_back() {
        let memory = Memory::new(100);
        let mut ledger = Ledger::new(&memory).unwrap();
        let mut take = |bytes, visibility| {
            let region = ledger.allocate(&memory, bytes, visibility).unwrap();
            assert_eq!(Some(&region), memory.taken.borrow().last());
            region
        };
        let first = take(1, Visibility::Private);
        let shared = take(8192, Visibility::Shared);
        let second = take(4097, Visibility::Private);
        let plain = take(0, Visibility::Plain);
        assert_eq!(
            [first, shared, second, plain].map(|region| region.bytes),
            [4096, 8192, 8192, 4096],
            "whole pages, at least one"
        );
        for (visibility, expected) in [
            (Visibility::Private, &[first, second][..]),
            (Visibility::Shared, &[shared]),
            (Visibility::Plain, &[plain]),
        ] {
            let found: Vec<_> = ledger.regions(visibility).collect();
            assert_eq!(found, expected);
            let bytes = expected.iter().map(|region| region.bytes).sum::<usize>();
            assert_eq!(ledger.bytes(visibility), bytes);
        }
        assert!(memory.freed.borrow().is_empty());
        release(ledger, &memory);
        assert!(all_came_back(&memory));
    }

    #[test]
    fn a_block_that_is_not_there_is_not_listed() {
        assert!(Ledger::new(&Memory::new(0)).is_none());
        let memory = Memory::new(2);
        let mut ledger = Ledger::new(&memory).unwrap();
        assert!(ledger.allocate(&memory, 1, Visibility::Plain).is_some());
        assert!(ledger.allocate(&memory, 1, Visibility::Plain).is_none());
        assert_eq!(ledger.bytes(Visibility::Plain), 4096);
        release(ledger, &memory);
        assert!(all_came_back(&memory));
    }

    #[test]
    fn the_list_fills_its_own_block_and_no_more() {
        let memory = Memory::new(usize::MAX);
        let mut ledger = Ledger::new(&memory).unwrap();
        let room = ledger.own.bytes / size_of::<Entry>();
        let taken = (0..=room)
            .map_while(|_| ledger.allocate(&memory, 1, Visibility::Plain))
            .count();
        assert_eq!(taken, room);
        assert_eq!(ledger.bytes(Visibility::Plain), room * 4096);
        release(ledger, &memory);
        assert!(all_came_back(&memory));
    }
}
