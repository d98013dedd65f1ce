//! Time: the TSC, measured against the local APIC timer, and the clock interrupt.
//!
//! The APIC timer's unit is taken as one nanosecond (that is what QEMU gives; in
//! Bochs it is one TSC tick, so there a TSC tick is a nominal nanosecond). The
//! clock ticks every `tick` units (command line, default 1,000,000: a nominal
//! millisecond) on every processor; processor 0 looks for timers that are due.
//! All times are in NT's 100 ns. Any IRQL.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{apic, boot, cmos, cpu, instr};
use crate::ke;

static TSC_HERTZ: AtomicU64 = AtomicU64::new(1_000_000_000);
static TSC_START: AtomicU64 = AtomicU64::new(0);
/// System time at the start, 100 ns since 1601.
static SYSTEM_START: AtomicU64 = AtomicU64::new(0);
static TICK: AtomicU64 = AtomicU64::new(1_000_000);

/// Measures; once, on the bootstrap processor.
#[unsafe(link_section = "INIT")]
pub(crate) fn initialize() {
    let units = 100_000;
    let ticks = apic::measure_tsc(units);
    TSC_HERTZ.store(
        ticks * (1_000_000_000 / u64::from(units)),
        Ordering::Release,
    );
    SYSTEM_START.store(cmos::seconds_since_1601() * 10_000_000, Ordering::Release);
    TSC_START.store(instr::rdtsc(), Ordering::Release);
    let tick = boot::option_number("tick")
        .unwrap_or(1_000_000)
        .clamp(20_000, 100_000_000);
    TICK.store(tick, Ordering::Release);
}

/// Starts this processor's clock interrupt.
pub(crate) fn start() {
    apic::start_clock(TICK.load(Ordering::Acquire) as u32);
}

/// TSC ticks in a second.
pub fn tsc_hertz() -> u64 {
    TSC_HERTZ.load(Ordering::Acquire)
}

/// 100 ns of one clock tick.
pub fn tick_100ns() -> u64 {
    TICK.load(Ordering::Acquire) / 100
}

/// 100 ns since the start.
pub fn interrupt_time() -> u64 {
    let ticks = instr::rdtsc().wrapping_sub(TSC_START.load(Ordering::Acquire));
    (u128::from(ticks) * 10_000_000 / u128::from(tsc_hertz())) as u64
}

/// 100 ns since 1601-01-01.
pub fn system_time() -> u64 {
    SYSTEM_START.load(Ordering::Acquire) + interrupt_time()
}

/// System time at the start, for absolute timers.
pub(crate) fn system_start() -> u64 {
    SYSTEM_START.load(Ordering::Acquire)
}

/// Waits by spinning.
pub fn stall(microseconds: u64) {
    let from = instr::rdtsc();
    let ticks = microseconds * (tsc_hertz() / 1_000_000).max(1);
    while instr::rdtsc().wrapping_sub(from) < ticks {
        instr::pause();
    }
}

/// The clock interrupt, at CLOCK_LEVEL.
pub(crate) fn interrupt() {
    let this = cpu::current();
    this.ticks.fetch_add(1, Ordering::Relaxed);
    let mut dispatch = false;
    if this.number.load(Ordering::Relaxed) == 0 {
        ke::shared_data::update();
        if ke::timer::next_due() <= interrupt_time() {
            this.timer_due.store(true, Ordering::Release);
            dispatch = true;
        }
    }
    if this.quantum.fetch_sub(1, Ordering::Relaxed) == 1 {
        this.quantum_end.store(true, Ordering::Release);
        dispatch = true;
    }
    if dispatch {
        apic::send_self(apic::DISPATCH_VECTOR);
    }
}
