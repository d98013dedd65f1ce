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
