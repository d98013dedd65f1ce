//! Interrupts between processors: TLB shoot-down and `KeIpiGenericCall`.
//!
//! Each processor has a mailbox of request bits. Whoever waits for another processor
//! answers its own mailbox meanwhile, so two waiters cannot block each other. A
//! processor that does not answer for `watchdog` TSC ticks (command line, default 20
//! thousand million) is CLOCK_WATCHDOG_TIMEOUT, as on NT. One request of each kind is
//! under way at a time, under a lock taken at DISPATCH_LEVEL.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::irql::{self, DISPATCH_LEVEL, IPI_LEVEL, require_irql};
use super::spinlock::SpinLock;
use crate::hal::{apic, boot, cpu, instr};
use crate::mm::tlb;

const FLUSH: u32 = 1;
const CALL: u32 = 2;
const CLOCK_WATCHDOG_TIMEOUT: u32 = 0x101;

static FLUSH_LOCK: SpinLock<()> = SpinLock::new(());
static FLUSH_ADDRESS: AtomicUsize = AtomicUsize::new(0);
static FLUSH_PAGES: AtomicUsize = AtomicUsize::new(0);
static FLUSH_LEFT: AtomicU64 = AtomicU64::new(0);

static CALL_LOCK: SpinLock<()> = SpinLock::new(());
static CALL_ROUTINE: AtomicUsize = AtomicUsize::new(0);
static CALL_ARGUMENT: AtomicUsize = AtomicUsize::new(0);
/// Processors that have arrived, and that have left.
static CALL_ARRIVED: AtomicU32 = AtomicU32::new(0);
static CALL_LEFT: AtomicU32 = AtomicU32::new(0);
/// Set when all have arrived.
static CALL_GO: AtomicU32 = AtomicU32::new(0);

/// Waits until `done`, answering this processor's mailbox.
fn wait_for(done: impl Fn() -> bool, missing: impl Fn() -> u64) {
    static LIMIT: AtomicU64 = AtomicU64::new(0);
    let mut limit = LIMIT.load(Ordering::Relaxed);
    if limit == 0 {
        limit = boot::option_number("watchdog").unwrap_or(20_000_000_000);
        LIMIT.store(limit, Ordering::Relaxed);
    }
    let from = instr::rdtsc();
    while !done() {
        service();
        instr::pause();
        if instr::rdtsc().wrapping_sub(from) > limit {
            let cpu = u64::from(cpu::current_number());
            super::bugcheck::raise(CLOCK_WATCHDOG_TIMEOUT, [limit, 0, cpu, missing()]);
        }
    }
}

fn others() -> impl Iterator<Item = u32> {
    let this = cpu::current_number();
    (0..super::cpu_count()).filter(move |&number| number != this)
}

fn post(number: u32, request: u32) {
    let target = cpu::of(number as usize);
    target.mailbox.fetch_or(request, Ordering::AcqRel);
    apic::send_fixed(target.apic_id.load(Ordering::Acquire), apic::IPI_VECTOR);
}

/// Drops the translations of these pages on all other processors and waits for it.
pub(crate) fn flush_others(address: usize, pages: usize) {
    if super::cpu_count() == 1 {
        return;
    }
    require_irql(DISPATCH_LEVEL, "TLB shoot-down");
    require!(
        instr::read_flags() & 0x200 != 0,
        "TLB shoot-down",
        "interrupts are off"
    );
    let _one = FLUSH_LOCK.lock();
    FLUSH_ADDRESS.store(address, Ordering::Relaxed);
    FLUSH_PAGES.store(pages, Ordering::Relaxed);
    let targets = others().fold(0u64, |mask, number| mask | 1 << number);
    FLUSH_LEFT.store(targets, Ordering::Release);
    for number in others() {
        post(number, FLUSH);
    }
    let left = || FLUSH_LEFT.load(Ordering::Acquire);
    wait_for(|| left() == 0, left);
}

/// Answers this processor's mailbox; at IPI_LEVEL or with this processor's IPIs
/// otherwise held off.
pub(crate) fn service() {
    let this = cpu::current_number();
    let data = cpu::of(this as usize);
    if data.mailbox.load(Ordering::Acquire) == 0 {
        return;
    }
    let requests = data.mailbox.swap(0, Ordering::AcqRel);
    if requests & FLUSH != 0 {
        tlb::flush_local(
            FLUSH_ADDRESS.load(Ordering::Relaxed),
            FLUSH_PAGES.load(Ordering::Relaxed),
        );
        FLUSH_LEFT.fetch_and(!(1 << this), Ordering::AcqRel);
    }
    if requests & CALL != 0 {
        let old = irql::raise(irql::current().max(IPI_LEVEL));
        CALL_ARRIVED.fetch_add(1, Ordering::AcqRel);
        wait_for(|| CALL_GO.load(Ordering::Acquire) != 0, || 0);
        run_call();
        irql::lower(old);
        CALL_LEFT.fetch_add(1, Ordering::AcqRel);
    }
}

fn run_call() -> usize {
    let routine = CALL_ROUTINE.load(Ordering::Acquire);
    // SAFETY: the routine that `call_all` was given.
    let routine: extern "C" fn(usize) -> usize = unsafe { core::mem::transmute(routine) };
    routine(CALL_ARGUMENT.load(Ordering::Acquire))
}

/// Calls `routine(argument)` on all processors at once, at IPI_LEVEL.
pub(crate) fn call_all(routine: extern "C" fn(usize) -> usize, argument: usize) -> usize {
    let _one = CALL_LOCK.lock();
    let count = super::cpu_count() - 1;
    CALL_ROUTINE.store(routine as usize, Ordering::Relaxed);
    CALL_ARGUMENT.store(argument, Ordering::Relaxed);
    CALL_ARRIVED.store(0, Ordering::Relaxed);
    CALL_LEFT.store(0, Ordering::Relaxed);
    CALL_GO.store(0, Ordering::Release);
    let old = irql::raise(IPI_LEVEL);
    for number in others() {
        post(number, CALL);
    }
    wait_for(
        || CALL_ARRIVED.load(Ordering::Acquire) == count,
        || u64::from(CALL_ARRIVED.load(Ordering::Acquire)),
    );
    CALL_GO.store(1, Ordering::Release);
    let result = run_call();
    wait_for(
        || CALL_LEFT.load(Ordering::Acquire) == count,
        || u64::from(CALL_LEFT.load(Ordering::Acquire)),
    );
    irql::lower(old);
    result
}

/// Runs `f` while no shoot-down and no call is under way or can begin.
pub(crate) fn quiesced<R>(f: impl FnOnce() -> R) -> R {
    let _calls = CALL_LOCK.lock();
    let _flushes = FLUSH_LOCK.lock();
    f()
}

/// `KeIpiGenericCall`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeIpiGenericCall(
    routine: extern "C" fn(usize) -> usize,
    argument: usize,
) -> usize {
    require_irql(DISPATCH_LEVEL, "KeIpiGenericCall");
    call_all(routine, argument)
}
