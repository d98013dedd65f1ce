//! Physical pages: which frames are RAM, which are free, and for each frame the
//! virtual address under which the pool or a stack uses it.
//!
//! The map comes from CMOS (low memory below the hole, high memory above 4 GiB),
//! since there is no BIOS to ask. One bitmap, set bits are free pages; next-fit
//! for single pages, first-fit for contiguous runs. Any caller, IRQL at most
//! DISPATCH_LEVEL. A page is not cleared here.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{DIRECT_MAP, PAGE_SIZE};
use crate::hal::{boot, cmos};
use crate::ke::spinlock::SpinLock;

/// A span of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

/// Most RAM spans that this machine can have.
pub const MAX_SPANS: usize = 3;

struct Physical {
    bitmap: &'static mut [u64],
    /// Word at which the search for a single page begins.
    hint: usize,
    free: usize,
}

static SPANS: SpinLock<[Span; MAX_SPANS]> = SpinLock::new([Span { start: 0, end: 0 }; MAX_SPANS]);
static PHYSICAL: SpinLock<Option<Physical>> = SpinLock::new(None);
/// Address of the array of owners, one `u64` per frame.
static OWNERS: AtomicUsize = AtomicUsize::new(0);
static FRAMES: AtomicUsize = AtomicUsize::new(0);

/// Low memory that is not handed out: real-mode start of the processors lies here.
const LOW_RESERVED: u64 = 0x1_0000;
/// Page of the processors' real-mode start code.
pub(crate) const TRAMPOLINE: u64 = 0x8000;

/// Where the kernel's own window shows this physical address; RAM only.
pub fn direct(physical: u64) -> *mut u8 {
    (DIRECT_MAP + physical as usize) as *mut u8
}

/// The RAM spans, ascending, without empty ones.
pub fn spans() -> impl Iterator<Item = Span> {
    let spans = *SPANS.lock();
    spans.into_iter().filter(|span| span.end > span.start)
}

/// Whether all of these bytes are RAM.
pub fn is_ram(start: u64, bytes: u64) -> bool {
    spans().any(|span| start >= span.start && start.saturating_add(bytes) <= span.end)
}

/// Highest physical address of RAM, plus one.
pub fn top() -> u64 {
    spans().map(|span| span.end).max().unwrap_or(0)
}

#[unsafe(link_section = "INIT")]
pub(crate) fn initialize() {
    let low = cmos::low_memory_end();
    let high = cmos::high_memory_bytes();
    let map = [
        Span {
            start: 0x1000,
            end: 0x9_F000,
        },
        Span {
            start: 0x10_0000,
            end: low,
        },
        Span {
            start: 1 << 32,
            end: (1 << 32) + high,
        },
    ];
    *SPANS.lock() = map;
    let frames = (top() as usize) / PAGE_SIZE;

    // Bitmap and owners lie right behind the boot image, inside the first GiB.
    let image_end = boot::block().image_end;
    let words = frames.div_ceil(64);
    let owners = (image_end as usize + words * 8).next_multiple_of(PAGE_SIZE);
    let reserved_end = (owners + frames * 8).next_multiple_of(PAGE_SIZE) as u64;
    assert!(reserved_end < low, "too little memory");
    let bitmap = direct(image_end).cast::<u64>();
    // SAFETY: RAM behind the boot image that nothing uses, in the boot window, aligned to pages.
    unsafe { core::ptr::write_bytes(bitmap, 0, words) };
    // SAFETY: the words were just initialised and belong to this bitmap for good.
    let bitmap = unsafe { core::slice::from_raw_parts_mut(bitmap, words) };
    // SAFETY: as for the bitmap.
    unsafe { core::ptr::write_bytes(direct(owners as u64).cast::<u64>(), 0, frames) };
    OWNERS.store(direct(owners as u64) as usize, Ordering::Release);
    FRAMES.store(frames, Ordering::Release);

    let mut this = Physical {
        bitmap,
        hint: 0,
        free: 0,
    };
    for span in map.into_iter().filter(|span| span.end > span.start) {
        for frame in (span.start / 4096)..(span.end / 4096) {
            let address = frame * 4096;
            let taken = address < LOW_RESERVED || (address >= 0x10_0000 && address < reserved_end);
            if !taken {
                this.release(frame as usize);
            }
        }
    }
    log!(
        "memory: {} KiB below 4 GiB, {} KiB above, {} KiB free",
        low >> 10,
        high >> 10,
        this.free * 4
    );
    *PHYSICAL.lock() = Some(this);
}

impl Physical {
    fn is_free(&self, frame: usize) -> bool {
        self.bitmap[frame / 64] >> (frame % 64) & 1 == 1
    }

    fn release(&mut self, frame: usize) {
        assert!(!self.is_free(frame), "frame {frame:#x} is freed twice");
        self.bitmap[frame / 64] |= 1 << (frame % 64);
        self.free += 1;
    }

    fn take(&mut self, frame: usize) {
        self.bitmap[frame / 64] &= !(1 << (frame % 64));
        self.free -= 1;
    }

    fn any(&mut self) -> Option<usize> {
        let words = self.bitmap.len();
        let word = (0..words)
            .map(|step| (self.hint + step) % words)
            .find(|&word| self.bitmap[word] != 0)?;
        self.hint = word;
        let frame = word * 64 + self.bitmap[word].trailing_zeros() as usize;
        self.take(frame);
        Some(frame)
    }

    /// First run of `count` free frames within `[low, high]`, aligned to `align` frames
    /// and crossing no multiple of `boundary` frames (0: no such rule).
    fn run(
        &mut self,
        count: usize,
        low: usize,
        high: usize,
        align: usize,
        boundary: usize,
    ) -> Option<usize> {
        let limit = high.min(self.bitmap.len() * 64 - 1);
        let mut frame = low.next_multiple_of(align);
        while frame + count - 1 <= limit {
            if boundary != 0 && frame / boundary != (frame + count - 1) / boundary {
                frame = (frame / boundary + 1) * boundary;
                frame = frame.next_multiple_of(align);
                continue;
            }
            if self.bitmap[frame / 64] == 0 {
                frame = ((frame / 64 + 1) * 64).next_multiple_of(align);
                continue;
            }
            if let Some(taken) = (frame..frame + count).rfind(|&at| !self.is_free(at)) {
                frame = (taken + 1).next_multiple_of(align);
                continue;
            }
            for at in frame..frame + count {
                self.take(at);
            }
            return Some(frame);
        }
        None
    }
}

/// A free page's physical address, content undefined.
pub fn allocate() -> Option<u64> {
    let frame = PHYSICAL.lock().as_mut()?.any()?;
    Some((frame * PAGE_SIZE) as u64)
}

/// A free page, cleared.
pub fn allocate_zeroed() -> Option<u64> {
    let physical = allocate()?;
    fill(physical, 0);
    Some(physical)
}

/// `count` contiguous pages within `[low, high]` (inclusive byte addresses), not
/// crossing a multiple of `boundary` bytes (0: may cross).
pub fn allocate_run(count: usize, low: u64, high: u64, align: usize, boundary: u64) -> Option<u64> {
    let first = low.div_ceil(4096) as usize;
    let last = ((high.saturating_add(1)) / 4096).checked_sub(1)? as usize;
    let boundary = (boundary / 4096) as usize;
    let frame = PHYSICAL
        .lock()
        .as_mut()?
        .run(count, first, last, align, boundary)?;
    Some((frame * PAGE_SIZE) as u64)
}

/// Gives a page back. No mapping of it may be left in any TLB.
pub fn free(physical: u64) {
    set_owner(physical, 0);
    if let Some(this) = PHYSICAL.lock().as_mut() {
        this.release(physical as usize / PAGE_SIZE);
    }
}

/// Fills a page with a byte.
pub fn fill(physical: u64, value: u8) {
    // SAFETY: the window shows this page of RAM; the caller owns the page.
    unsafe { core::ptr::write_bytes(direct(physical), value, PAGE_SIZE) };
}

/// Free pages now.
pub fn free_pages() -> usize {
    PHYSICAL.lock().as_ref().map_or(0, |this| this.free)
}

fn owner_slot(physical: u64) -> Option<&'static AtomicU64> {
    let frame = physical as usize / PAGE_SIZE;
    if frame >= FRAMES.load(Ordering::Acquire) {
        return None;
    }
    let at = (OWNERS.load(Ordering::Acquire) + frame * 8) as *const AtomicU64;
    // SAFETY: the array has a slot for each frame below FRAMES and lives for good.
    Some(unsafe { &*at })
}

/// Records the virtual page under which the kernel uses this frame (0: none).
pub fn set_owner(physical: u64, virtual_page: u64) {
    if let Some(slot) = owner_slot(physical) {
        slot.store(virtual_page, Ordering::Relaxed);
    }
}

/// What [`set_owner`] recorded.
pub fn owner(physical: u64) -> u64 {
    owner_slot(physical).map_or(0, |slot| slot.load(Ordering::Relaxed))
}
