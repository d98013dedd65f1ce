//! Extended processor state: the XSAVE areas of threads, and
//! `KeSaveExtendedProcessorState` for drivers that use AVX.
//!
//! Areas come from the pool, page-aligned. IRQL at most DISPATCH_LEVEL.

use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::irql::{DISPATCH_LEVEL, require_irql};
use crate::hal::{cpu, instr};
use crate::mm::{PAGE_SIZE, pool};

const TAG: u32 = u32::from_le_bytes(*b"Xsav");
const STATUS_INSUFFICIENT_RESOURCES: i32 = 0xC000_009A_u32 as i32;
/// `MXCSR` and x87 control word of a fresh thread on Windows.
const FRESH_MXCSR: u32 = 0x1F80;
const FRESH_CONTROL: u16 = 0x027F;

static MASK: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// Reads what the processor offers; once, on the bootstrap processor.
#[unsafe(link_section = "INIT")]
pub(crate) fn initialize() {
    let (mask, bytes) = cpu::extended_state();
    MASK.store(mask, Ordering::Release);
    BYTES.store(bytes.max(PAGE_SIZE), Ordering::Release);
}

/// Components that a context switch saves; 0: FXSAVE.
pub(crate) fn mask() -> u64 {
    MASK.load(Ordering::Relaxed)
}

/// An area with the state of a fresh thread.
pub(crate) fn allocate_area() -> Option<usize> {
    let area = pool::allocate(BYTES.load(Ordering::Acquire), TAG, false, true, 0)?;
    let put = |offset: usize, bytes: &[u8]| {
        let to = (area + offset) as *mut u8;
        // SAFETY: inside the area just made.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    };
    // Intel SDM volume 1, 13.4 "XSAVE Area": control word, MXCSR, XSTATE_BV.
    put(0, &FRESH_CONTROL.to_le_bytes());
    put(24, &FRESH_MXCSR.to_le_bytes());
    put(512, &3u64.to_le_bytes());
    Some(area)
}

/// Frees an area.
pub(crate) fn free_area(area: usize) {
    pool::free(area, Some(TAG), "thread");
}

/// `XSTATE_SAVE`, as far as this kernel uses it.
#[repr(C)]
#[derive(Debug)]
pub struct XstateSave {
    area: usize,
    mask: u64,
    thread: usize,
    level: u8,
}

const _: () = assert!(size_of::<XstateSave>() <= 48);

/// `KeSaveExtendedProcessorState`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSaveExtendedProcessorState(mask: u64, save: *mut c_void) -> i32 {
    let api = "KeSaveExtendedProcessorState";
    require_irql(DISPATCH_LEVEL, api);
    require!(!save.is_null(), api, "the save area is NULL");
    let mask = mask & self::mask();
    let Some(area) = allocate_area() else {
        return STATUS_INSUFFICIENT_RESOURCES;
    };
    // SAFETY: the area is long enough for all components.
    unsafe { instr::xsave(area as *mut u8, mask) };
    let thread = cpu::current_thread();
    let level = super::irql::current();
    let record = XstateSave {
        area,
        mask,
        thread,
        level,
    };
    // SAFETY: the caller gives memory for an XSTATE_SAVE.
    unsafe { save.cast::<XstateSave>().write(record) };
    0
}

/// `KeRestoreExtendedProcessorState`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRestoreExtendedProcessorState(save: *mut c_void) {
    let api = "KeRestoreExtendedProcessorState";
    require_irql(DISPATCH_LEVEL, api);
    // SAFETY: what `KeSaveExtendedProcessorState` wrote.
    let record = unsafe { save.cast::<XstateSave>().read() };
    let level = super::irql::current();
    require!(
        record.level == level,
        api,
        "saved at IRQL {}, restored at {level}",
        record.level
    );
    if level < DISPATCH_LEVEL {
        require!(
            record.thread == cpu::current_thread(),
            api,
            "another thread restores"
        );
    }
    // SAFETY: the area holds what `xsave` wrote with this mask.
    unsafe { instr::xrstor(record.area as *const u8, record.mask) };
    free_area(record.area);
}
