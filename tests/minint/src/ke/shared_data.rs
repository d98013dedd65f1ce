//! Data that drivers read without a call: `KUSER_SHARED_DATA` at its fixed address,
//! and the exported variables.
//!
//! The page is read-only at 0xFFFFF780_00000000, as drivers see it; the clock
//! interrupt of processor 0 writes times through the kernel's window. Offsets are
//! those of the structure in the WDK's `ntddk.h`.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::hal::{clock, instr};
use crate::mm::{KERNEL_HALF, PAGE_SIZE, SHARED_DATA, USER_END, paging, physical};

/// `TickCountMultiplier` for ticks of one millisecond: 2^24.
const MULTIPLIER: u32 = 1 << 24;

type Layout = wdk_standin::wdk_sys::KUSER_SHARED_DATA;

/// Where the kernel writes the page.
static WINDOW: AtomicUsize = AtomicUsize::new(0);

/// `KeNumberProcessors`.
#[unsafe(no_mangle)]
pub static KeNumberProcessors: AtomicU8 = AtomicU8::new(1);
/// `KdDebuggerEnabled`.
#[unsafe(no_mangle)]
pub static KdDebuggerEnabled: AtomicU8 = AtomicU8::new(0);
/// `KdDebuggerNotPresent`.
#[unsafe(no_mangle)]
pub static KdDebuggerNotPresent: AtomicU8 = AtomicU8::new(1);
/// `MmHighestUserAddress`.
#[unsafe(no_mangle)]
pub static MmHighestUserAddress: AtomicUsize = AtomicUsize::new(USER_END - 1);
/// `MmSystemRangeStart`.
#[unsafe(no_mangle)]
pub static MmSystemRangeStart: AtomicUsize = AtomicUsize::new(KERNEL_HALF);
/// `MmUserProbeAddress`.
#[unsafe(no_mangle)]
pub static MmUserProbeAddress: AtomicUsize = AtomicUsize::new(USER_END);
/// `KeTickCount`.
#[unsafe(no_mangle)]
pub static KeTickCount: AtomicU64 = AtomicU64::new(0);

fn put(offset: usize, value: u32) {
    let at = (WINDOW.load(Ordering::Acquire) + offset) as *const AtomicU32;
    // SAFETY: a word of the shared page in the kernel's window; written here alone.
    unsafe { &*at }.store(value, Ordering::Release);
}

/// A `KSYSTEM_TIME`: High2 first, then Low, then High1, so that a reader sees whole values.
fn put_time(offset: usize, value: u64) {
    put(offset + 8, (value >> 32) as u32);
    put(offset, value as u32);
    put(offset + 4, (value >> 32) as u32);
}

/// Makes the page; once, before drivers run.
#[unsafe(link_section = "INIT")]
pub(crate) fn initialize() {
    let Some(frame) = physical::allocate_zeroed() else {
        super::bugcheck::out_of_memory("shared data")
    };
    paging::map_kernel(SHARED_DATA, frame, paging::Rights::ReadOnly.kernel_bits());
    physical::set_owner(frame, SHARED_DATA as u64);
    WINDOW.store(physical::direct(frame) as usize, Ordering::Release);
    put(offset_of!(Layout, TickCountMultiplier), MULTIPLIER);
    put(offset_of!(Layout, NtProductType), 1);
    put(offset_of!(Layout, NtMajorVersion), 10);
    put(offset_of!(Layout, NtMinorVersion), 0);
    // ProcessorFeatures: compare-exchange, MMX, SSE, RDTSC, PAE, SSE2, NX, CX16, and
    // XSAVE where CR4 says so (PF_* of winnt.h).
    let features = offset_of!(Layout, ProcessorFeatures);
    let xsave = instr::read_cr4() >> 18 & 1 == 1;
    for number in [2, 3, 6, 8, 9, 10, 12, 14]
        .into_iter()
        .chain(xsave.then_some(17))
    {
        let at = (WINDOW.load(Ordering::Acquire) + features + number) as *const AtomicU8;
        // SAFETY: a byte of the shared page in the kernel's window.
        unsafe { &*at }.store(1, Ordering::Relaxed);
    }
    KeNumberProcessors.store(super::cpu_count() as u8, Ordering::Release);
    update();
}

/// Brings the times up to date; in the clock interrupt of processor 0.
pub(crate) fn update() {
    if WINDOW.load(Ordering::Acquire) == 0 {
        return;
    }
    put_time(offset_of!(Layout, InterruptTime), clock::interrupt_time());
    put_time(offset_of!(Layout, SystemTime), clock::system_time());
    let ticks = clock::interrupt_time() / clock::tick_100ns();
    put_time(0x320, ticks);
    KeTickCount.store(ticks, Ordering::Release);
}

const _: () = assert!(size_of::<Layout>() <= PAGE_SIZE);
const _: () = assert!(offset_of!(Layout, InterruptTime) == 8);
const _: () = assert!(offset_of!(Layout, SystemTime) == 0x14);
const _: () = assert!(offset_of!(Layout, NtMajorVersion) == 0x26C);
