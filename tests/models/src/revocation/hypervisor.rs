//! What all cores share, and the pages.

use loom::cell::UnsafeCell;

use crate::atomics::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::revocation::guest::Rights;
use crate::revocation::percpu::{Core, PAGES};
use crate::revocation::transition::TransitionLock;

/// A page: the entry that maps it, what is in it, and what was looked at.
#[derive(Debug)]
pub struct Page {
    entry: AtomicU8,
    /// A number for the bytes in it; each write makes it another one.
    content: UnsafeCell<u32>,
    /// The number that was looked at last.
    approved: UnsafeCell<u32>,
}

impl Page {
    fn new(rights: Rights) -> Self {
        Self {
            entry: AtomicU8::new(rights as u8),
            content: UnsafeCell::new(0),
            approved: UnsafeCell::new(0),
        }
    }

    /// The rights in the shared tables.
    #[must_use]
    pub fn rights(&self) -> Rights {
        Rights::from_bits(self.entry.load(Ordering::Acquire))
    }

    /// A guest's write.
    pub fn write(&self) {
        self.content.with_mut(|content| {
            // SAFETY: loom fails the run if another access may overlap.
            unsafe { *content += 1 };
        });
    }

    /// A guest's fetch.
    pub fn fetch(&self) {
        let ran = self.read();
        let seen = self.approved.with(|approved| {
            // SAFETY: as above.
            unsafe { *approved }
        });
        assert_eq!(ran, seen, "unseen bytes were run");
    }

    /// The hypervisor's look at the page.
    pub fn inspect(&self) {
        let seen = self.read();
        self.approved.with_mut(|approved| {
            // SAFETY: as above.
            unsafe { *approved = seen };
        });
    }

    fn read(&self) -> u32 {
        self.content.with(|content| {
            // SAFETY: as above.
            unsafe { *content }
        })
    }
}

/// The hypervisor.
#[derive(Debug)]
#[expect(missing_docs, reason = "as in hv-core")]
pub struct Hypervisor {
    pub transition: TransitionLock,
    pub generation: AtomicU64,
    pub cores: Vec<Core>,
    pub pages: [Page; PAGES],
    /// Cores that do something, of the model's own.
    pub busy: AtomicU32,
    /// Interrupts are on their way and do not arrive yet.
    pub late: AtomicBool,
    /// Whether they ever are.
    pub may_be_late: bool,
    /// Changes, counted as `ept` counts: by the holder of the lock.
    changes: UnsafeCell<u32>,
}

impl Hypervisor {
    /// So many cores, these rights to the pages, and interrupts that may be late.
    #[must_use]
    pub fn new(cores: u32, rights: [Rights; PAGES], late: bool) -> Self {
        Self {
            transition: TransitionLock::new(),
            generation: AtomicU64::new(0),
            cores: (0..cores).map(Core::new).collect(),
            pages: rights.map(Page::new),
            busy: AtomicU32::new(cores),
            late: AtomicBool::new(late),
            may_be_late: late,
            changes: UnsafeCell::new(0),
        }
    }

    /// Stores a page's rights in the shared tables, and keeps the books.
    pub fn set_rights(&self, page: usize, rights: Rights) {
        self.pages[page]
            .entry
            .store(rights as u8, Ordering::Release);
        self.changes.with_mut(|changes| {
            // SAFETY: loom fails the run if another access may overlap.
            unsafe { *changes += 1 };
        });
    }

    /// The cores.
    pub fn cores(&self) -> impl Iterator<Item = &Core> {
        self.cores.iter()
    }
}
