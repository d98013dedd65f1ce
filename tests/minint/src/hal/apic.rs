//! The local APIC, in xAPIC mode by its page or in x2APIC mode (`x2apic=1`) by MSRs.
//!
//! Every access asks which mode this processor is in, because a driver may see the
//! machine in either. Each processor touches its own APIC only; sending an interrupt
//! turns interrupts off around the two halves of the ICR. Any IRQL.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::{boot, instr};
use crate::mm::{paging, region};

const IA32_APIC_BASE: u32 = 0x1B;
const X2APIC_ENABLE: u64 = 1 << 10;
const ID: u32 = 0x02;
const TASK_PRIORITY: u32 = 0x08;
const END_OF_INTERRUPT: u32 = 0x0B;
const LOGICAL_DESTINATION: u32 = 0x0D;
const DESTINATION_FORMAT: u32 = 0x0E;
const SPURIOUS: u32 = 0x0F;
const INTERRUPT_COMMAND: u32 = 0x30;
const INTERRUPT_COMMAND_HIGH: u32 = 0x31;
const TIMER: u32 = 0x32;
const LINT0: u32 = 0x35;
const LINT1: u32 = 0x36;
const ERROR: u32 = 0x37;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVIDE: u32 = 0x3E;

/// Vector of the clock.
pub const CLOCK_VECTOR: u8 = 0xD1;
/// Vector of interrupts between processors.
pub const IPI_VECTOR: u8 = 0xE1;
/// Vector of the dispatch interrupt.
pub const DISPATCH_VECTOR: u8 = 0x2F;
/// Vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xFF;

const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;
const LEVEL_ASSERT: u32 = 1 << 14;
const MASKED: u32 = 1 << 16;

static PAGE: AtomicUsize = AtomicUsize::new(0);

/// Maps the register page; once, on the bootstrap processor.
#[unsafe(link_section = "INIT")]
pub(crate) fn map() {
    // SAFETY: every x86-64 processor with an APIC has this register.
    let base = unsafe { instr::rdmsr(IA32_APIC_BASE) } & paging::FRAME;
    let address = region::SYSTEM
        .reserve(1)
        .expect("address space for the APIC");
    let bits =
        paging::Rights::ReadWrite.kernel_bits() | paging::CACHE_DISABLE | paging::WRITE_THROUGH;
    paging::map_kernel(address, base, bits);
    PAGE.store(address, Ordering::Release);
}

fn x2apic() -> bool {
    // SAFETY: as in `map`.
    unsafe { instr::rdmsr(IA32_APIC_BASE) & X2APIC_ENABLE != 0 }
}

fn register(number: u32) -> *mut u32 {
    (PAGE.load(Ordering::Acquire) + 16 * number as usize) as *mut u32
}

fn read(number: u32) -> u32 {
    if x2apic() {
        // SAFETY: x2APIC mode has this register as an MSR (Intel SDM volume 3, table 12-6).
        return unsafe { instr::rdmsr(0x800 + number) } as u32;
    }
    // SAFETY: the mapped register page of this processor's APIC.
    unsafe { register(number).read_volatile() }
}

fn write(number: u32, value: u32) {
    if x2apic() {
        // SAFETY: as in `read`; the value suits the register.
        unsafe { instr::wrmsr(0x800 + number, u64::from(value)) };
        return;
    }
    // SAFETY: as in `read`.
    unsafe { register(number).write_volatile(value) };
}

/// Turns this processor's APIC on, timer masked. Returns its id.
pub(crate) fn initialize(bootstrap: bool) -> u32 {
    let [_, _, features, _] = instr::cpuid(1, 0);
    // SAFETY: as in `map`.
    let base = unsafe { instr::rdmsr(IA32_APIC_BASE) };
    let mut enabled = base | 1 << 11;
    // SAFETY: global enable.
    unsafe { instr::wrmsr(IA32_APIC_BASE, enabled) };
    if boot::option("x2apic") == Some("1") && features >> 21 & 1 == 1 {
        enabled |= X2APIC_ENABLE;
        // SAFETY: CPUID offers x2APIC mode, and the APIC is on.
        unsafe { instr::wrmsr(IA32_APIC_BASE, enabled) };
    }
    if !x2apic() {
        write(DESTINATION_FORMAT, 0xFFFF_FFFF);
        write(LOGICAL_DESTINATION, 0);
    }
    write(TASK_PRIORITY, 0);
    write(TIMER, MASKED | u32::from(CLOCK_VECTOR));
    // LINT0 is the 8259's line (masked: the I/O APIC is used), LINT1 is NMI.
    write(LINT0, MASKED);
    write(
        LINT1,
        if bootstrap {
            DELIVERY_NMI
        } else {
            MASKED | DELIVERY_NMI
        },
    );
    write(ERROR, MASKED | 0xE3);
    write(SPURIOUS, 1 << 8 | u32::from(SPURIOUS_VECTOR));
    let id = read(ID);
    if x2apic() { id } else { id >> 24 }
}

/// Ends the interrupt in service.
pub(crate) fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Starts the periodic clock, `count` timer units of one bus clock each.
pub(crate) fn start_clock(count: u32) {
    write(TIMER_DIVIDE, 0xB);
    write(TIMER, 1 << 17 | u32::from(CLOCK_VECTOR));
    write(TIMER_INITIAL, count);
}

/// TSC ticks in `units` timer units.
pub(crate) fn measure_tsc(units: u32) -> u64 {
    write(TIMER_DIVIDE, 0xB);
    write(TIMER, MASKED | u32::from(CLOCK_VECTOR));
    write(TIMER_INITIAL, u32::MAX);
    let from_timer = read(TIMER_CURRENT);
    let from = instr::rdtsc();
    loop {
        let passed = from_timer.wrapping_sub(read(TIMER_CURRENT));
        if passed >= units {
            let ticks = instr::rdtsc() - from;
            write(TIMER_INITIAL, 0);
            return ticks * u64::from(units) / u64::from(passed);
        }
    }
}

fn send(apic_id: u32, command: u32) {
    let were_on = instr::cli();
    if x2apic() {
        let value = u64::from(apic_id) << 32 | u64::from(command);
        // Stores before the interrupt must be visible first (Intel SDM volume 3, 12.12.3).
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: the ICR of x2APIC mode.
        unsafe { instr::wrmsr(0x800 + INTERRUPT_COMMAND, value) };
    } else {
        while read(INTERRUPT_COMMAND) & 1 << 12 != 0 {
            instr::pause();
        }
        write(INTERRUPT_COMMAND_HIGH, apic_id << 24);
        write(INTERRUPT_COMMAND, command);
    }
    if were_on {
        // SAFETY: interrupts were on when the caller came.
        unsafe { instr::sti() };
    }
}

/// Sends a fixed interrupt.
pub(crate) fn send_fixed(apic_id: u32, vector: u8) {
    send(apic_id, LEVEL_ASSERT | u32::from(vector));
}

/// Sends an NMI.
pub(crate) fn send_nmi(apic_id: u32) {
    send(apic_id, LEVEL_ASSERT | DELIVERY_NMI);
}

/// Sends INIT.
pub(crate) fn send_init(apic_id: u32) {
    send(apic_id, LEVEL_ASSERT | DELIVERY_INIT);
}

/// Sends a startup IPI; the processor begins at `page << 12` in real mode.
pub(crate) fn send_startup(apic_id: u32, page: u8) {
    send(apic_id, LEVEL_ASSERT | DELIVERY_STARTUP | u32::from(page));
}

/// Requests an interrupt on this processor.
pub(crate) fn send_self(vector: u8) {
    const SELF: u32 = 1 << 18;
    if x2apic() {
        // SAFETY: the self-IPI register of x2APIC mode.
        unsafe { instr::wrmsr(0x83F, u64::from(vector)) };
        return;
    }
    send(0, SELF | LEVEL_ASSERT | u32::from(vector));
}
