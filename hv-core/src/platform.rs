//! What the hypervisor needs from the operating system while it is being
//! started and stopped.
//!
//! Everything here is called in guest context at PASSIVE_LEVEL, never from root
//! mode. The driver implements [`Platform`] on documented NT calls; tests
//! implement it on plain memory.

use ept::addr::Hpa;

/// A block of memory that the platform handed out.
///
/// Page-aligned, physically contiguous, zeroed, writable and not executable.
/// It is given back with [`Platform::free`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First virtual address, in the system's address space.
    pub va: u64,
    /// First physical address.
    pub pa: Hpa,
    /// Length in bytes, a multiple of 4096.
    pub bytes: usize,
}

/// One range of physical memory that the operating system uses as RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RamRange {
    /// First physical address.
    pub base: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// The most RAM ranges that are kept; a machine that has more is refused.
pub const MAX_RAM_RANGES: usize = 64;

/// The RAM of the machine, in ascending order without overlap.
#[derive(Debug, Clone, Copy)]
pub struct Ram {
    /// The ranges; the first `count` are valid.
    pub ranges: [RamRange; MAX_RAM_RANGES],
    /// How many ranges are valid.
    pub count: usize,
}

impl Ram {
    /// No RAM at all; ranges are added with [`Ram::push`].
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            ranges: [RamRange { base: 0, bytes: 0 }; MAX_RAM_RANGES],
            count: 0,
        }
    }

    /// Appends a range. Returns `false` when there is no room.
    #[must_use]
    pub fn push(&mut self, range: RamRange) -> bool {
        let Some(slot) = self.ranges.get_mut(self.count) else {
            return false;
        };
        *slot = range;
        self.count += 1;
        true
    }

    /// The valid ranges.
    pub fn iter(&self) -> impl Iterator<Item = &RamRange> {
        self.ranges.iter().take(self.count)
    }

    /// Whether a physical address lies in RAM.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.iter()
            .any(|r| address >= r.base && address - r.base < r.bytes)
    }

    /// All RAM, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.iter().map(|r| r.bytes).sum()
    }

    /// First address above the last range, or 0 without RAM.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.iter().map(|r| r.base + r.bytes).max().unwrap_or(0)
    }
}

/// One section of the driver image that is resident for as long as the driver
/// is loaded (discardable sections are left out).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageSection {
    /// First virtual address, page-aligned.
    pub va: u64,
    /// Length in bytes; the last page is mapped whole.
    pub bytes: usize,
    /// Section may be written.
    pub writable: bool,
    /// Section may be executed.
    pub executable: bool,
}

/// The most sections of the driver image that are looked at.
pub const MAX_IMAGE_SECTIONS: usize = 24;

/// What the operating system does for the hypervisor.
///
/// # Safety
///
/// An implementation promises what the methods' texts promise: root mode will
/// run on the memory that [`Platform::allocate`] hands out and trusts that it is
/// where it says.
pub unsafe trait Platform {
    /// Number of logical processors that are running. They are numbered from 0.
    fn cpu_count(&self) -> u32;

    /// Allocates zeroed, page-aligned, physically contiguous, non-executable
    /// memory that is resident. `bytes` is a multiple of 4096. `None` when there
    /// is none.
    fn allocate(&self, bytes: usize) -> Option<Region>;

    /// Gives memory back.
    ///
    /// # Safety
    ///
    /// The region came from [`Platform::allocate`] of the same platform, is not
    /// freed twice, and nothing uses it any more on any processor.
    unsafe fn free(&self, region: Region);

    /// Physical address behind a resident system address, or `None` when nothing
    /// is mapped there.
    fn physical_address(&self, va: u64) -> Option<Hpa>;

    /// Runs `work` on processor `cpu`, at PASSIVE_LEVEL, and returns when it has
    /// run. `false` when that processor cannot be reached; `work` has not run
    /// then.
    fn run_on(&self, cpu: u32, work: &mut dyn FnMut()) -> bool;

    /// The machine's RAM, or `None` when it cannot be told or has too many ranges.
    fn ram(&self) -> Option<Ram>;

    /// The resident sections of the driver image, the PE header page included as
    /// a read-only section. Returns how many were written to `sections`.
    fn image_sections(&self, sections: &mut [ImageSection; MAX_IMAGE_SECTIONS]) -> usize;

    /// Unpredictable bits for the hypercall secret.
    fn random(&self) -> [u64; 2];
}
