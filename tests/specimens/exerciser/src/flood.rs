//! NMIs at random moments, each to a processor that is busy, and counted.
//!
//! The next NMI is sent when the one before has been seen, so that none can merge
//! with another: as many must be seen as were sent, on each processor, with or
//! without a hypervisor that uses NMIs for itself. The others are kept busy by
//! threads that cause exits of several kinds and turn pages between data and code.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use wdk_standin::wdk_sys::{
    BOOLEAN, PVOID,
    ntddk::{
        KeDeregisterNmiCallback, KeGetCurrentProcessorNumberEx, KeQueryActiveProcessorCount,
        KeRegisterNmiCallback, KeSetSystemAffinityThreadEx,
    },
};

use crate::apic::Apic;
use crate::harness::{CodePages, Worker};
use crate::instr;
use crate::line;
use crate::text::Text;

const MOST: usize = 8;
/// Rounds that are waited for an NMI.
const PATIENCE: u64 = 20_000_000;

static SEEN: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
static IDENTIFIERS: [AtomicU32; MOST] = [const { AtomicU32::new(u32::MAX) }; MOST];
static BUSY: [Worker; MOST] = [const { Worker::new() }; MOST];
static STOP: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn on_nmi(_context: PVOID, _handled: BOOLEAN) -> BOOLEAN {
    // SAFETY: any IRQL; no group is asked for.
    let number = unsafe { KeGetCurrentProcessorNumberEx(core::ptr::null_mut()) };
    if let Some(count) = SEEN.get(number as usize) {
        count.fetch_add(1, Ordering::AcqRel);
    }
    1
}

/// `lea rax, [rcx + 1]; ret`
const CODE: [u8; 5] = [0x48, 0x8D, 0x41, 0x01, 0xC3];

/// Keeps the processor busy whose number is the context.
unsafe extern "C" fn be_busy(context: PVOID) {
    let number = context as usize;
    // SAFETY: PASSIVE_LEVEL; an active processor.
    unsafe { KeSetSystemAffinityThreadEx(1 << number) };
    if let (Some(mut code), Some(apic)) = (CodePages::allocate(1), Apic::map()) {
        let on = instr::interrupts_off();
        IDENTIFIERS[number % MOST].store(apic.id(), Ordering::Release);
        if on {
            // SAFETY: they were on before.
            unsafe { instr::interrupts_on() };
        }
        let mut round = 0_u64;
        while !STOP.load(Ordering::Acquire) {
            // The page is data, then code, every few rounds.
            if round.is_multiple_of(8) && code.write(0, &CODE) {
                // SAFETY: a function of this signature lies there.
                let routine = unsafe {
                    core::mem::transmute::<u64, unsafe extern "C" fn(u64) -> u64>(code.address())
                };
                // SAFETY: it computes.
                let _ = unsafe { routine(round) };
            }
            for _ in 0..round % 13 {
                let _ = core::arch::x86_64::__cpuid(0);
            }
            for _ in 0..round % 57 {
                core::hint::spin_loop();
            }
            round += 1;
        }
    }
    Worker::leave();
}

/// Sends `count` NMIs from the processor at hand to all others in turn, or to
/// itself if there is no other.
pub(crate) fn all(text: &mut Text<'_>, count: u64) {
    // SAFETY: any IRQL.
    let cpus = unsafe { KeQueryActiveProcessorCount(core::ptr::null_mut()) } as usize;
    let cpus = cpus.min(MOST);
    // SAFETY: any IRQL; the thread is bound.
    let own = unsafe { KeGetCurrentProcessorNumberEx(core::ptr::null_mut()) } as usize;
    let Some(apic) = Apic::map() else {
        line!(text, "no memory");
        return;
    };
    for seen in &SEEN {
        seen.store(0, Ordering::Release);
    }
    for identifier in &IDENTIFIERS {
        identifier.store(u32::MAX, Ordering::Release);
    }
    STOP.store(false, Ordering::Release);
    // SAFETY: the routine only counts, and is taken back below.
    let registration = unsafe { KeRegisterNmiCallback(Some(on_nmi), core::ptr::null_mut()) };
    let others = |number: &usize| *number != own;
    for number in (0..cpus).filter(others) {
        let _ = BUSY[number].start_with(be_busy, number as PVOID);
    }
    if cpus == 1 {
        let on = instr::interrupts_off();
        IDENTIFIERS[own % MOST].store(apic.id(), Ordering::Release);
        if on {
            // SAFETY: they were on before.
            unsafe { instr::interrupts_on() };
        }
    }
    let targets = || (0..cpus).filter(|number| cpus == 1 || *number != own);
    for number in targets() {
        while IDENTIFIERS[number].load(Ordering::Acquire) == u32::MAX {
            core::hint::spin_loop();
        }
    }
    let mut sent = [0_u64; MOST];
    let mut lost = 0_u64;
    // Numbers as `Xorshift` makes them (Marsaglia, 2003).
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for (number, _) in targets().cycle().zip(0..count) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for _ in 0..state % 61 {
            core::hint::spin_loop();
        }
        let before = SEEN[number].load(Ordering::Acquire);
        let on = instr::interrupts_off();
        apic.nmi(IDENTIFIERS[number].load(Ordering::Acquire));
        if on {
            // SAFETY: they were on before.
            unsafe { instr::interrupts_on() };
        }
        sent[number] += 1;
        let mut patience = PATIENCE;
        while SEEN[number].load(Ordering::Acquire) == before && patience > 0 {
            core::hint::spin_loop();
            patience -= 1;
        }
        lost += u64::from(patience == 0);
        if lost > 3 {
            break;
        }
    }
    STOP.store(true, Ordering::Release);
    for number in (0..cpus).filter(others) {
        BUSY[number].stop();
    }
    // SAFETY: registered above.
    let _ = unsafe { KeDeregisterNmiCallback(registration) };
    for (number, sent) in sent.iter().enumerate().take(cpus) {
        let seen = SEEN[number].load(Ordering::Acquire);
        line!(text, "processor {number}: {sent} sent, {seen} seen");
    }
    line!(text, "lost {lost}");
}
