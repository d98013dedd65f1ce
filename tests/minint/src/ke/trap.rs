//! What the entry stubs call: exceptions, device and clock interrupts, NMI, system
//! calls.
//!
//! On entry interrupts are off; on return to the stub they are off again. A hardware
//! interrupt raises the IRQL to its vector's class for the time of its routine. An
//! exception in kernel mode is a bugcheck; in ring 3 it ends the process.

use core::sync::atomic::Ordering;

use super::{bugcheck, dispatcher, dpc, ipi, irql, nmi, timer};
use crate::hal::entry::TrapFrame;
use crate::hal::{apic, clock, cpu, instr, ioapic};
use crate::ps;

const IRQL_NOT_LESS_OR_EQUAL: u32 = 0x0A;
const KMODE_EXCEPTION_NOT_HANDLED: u32 = 0x1E;
const PAGE_FAULT_IN_NONPAGED_AREA: u32 = 0x50;
const UNEXPECTED_KERNEL_MODE_TRAP: u32 = 0x7F;
const MACHINE_CHECK_EXCEPTION: u32 = 0x9C;
const ATTEMPTED_WRITE_TO_READONLY_MEMORY: u32 = 0xBE;
const ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY: u32 = 0xFC;

/// Exceptions and interrupts.
pub(crate) extern "C" fn KiDispatchInterrupt(frame: &mut TrapFrame) {
    let vector = frame.vector as u8;
    if vector < 32 {
        exception(frame, vector);
    } else {
        hardware(vector);
    }
    instr::cli();
    if frame.from_user() {
        ps::user::before_return(frame);
    }
}

fn hardware(vector: u8) {
    if vector == apic::SPURIOUS_VECTOR {
        return;
    }
    let old = irql::current();
    // SAFETY: the processor accepted the interrupt, so its level is above the current one.
    unsafe { instr::write_cr8(u64::from(vector >> 4)) };
    apic::end_of_interrupt();
    // SAFETY: interrupts of this level and below are held off by CR8.
    unsafe { instr::sti() };
    match vector {
        apic::CLOCK_VECTOR => clock::interrupt(),
        apic::IPI_VECTOR => ipi::service(),
        apic::DISPATCH_VECTOR => dispatch(),
        _ => {
            if !ioapic::dispatch(vector) {
                log!("unexpected interrupt, vector {vector:#x}");
            }
        }
    }
    instr::cli();
    irql::lower(old);
}

/// The dispatch interrupt: DPCs, timers, then the scheduler.
fn dispatch() {
    let this = cpu::current();
    dpc::retire();
    if this.timer_due.swap(false, Ordering::AcqRel) {
        timer::expire();
        dpc::retire();
    }
    dispatcher::reschedule();
}

fn exception(frame: &mut TrapFrame, vector: u8) {
    let address = instr::read_cr2();
    if frame.rflags & 0x200 != 0 {
        // SAFETY: the interrupted code ran with interrupts on.
        unsafe { instr::sti() };
    }
    if frame.from_user() {
        ps::user::exception(frame, vector, address);
        return;
    }
    if vector == 13 && frame.rip == instr::probe_read() {
        frame.rip = instr::probe_fault();
        return;
    }
    fatal(frame, vector, address);
}

fn fatal(frame: &TrapFrame, vector: u8, address: u64) -> ! {
    let level = irql::current();
    let error = frame.error;
    let (code, parameters) = match vector {
        14 if level >= irql::DISPATCH_LEVEL => (
            IRQL_NOT_LESS_OR_EQUAL,
            [address, u64::from(level), error >> 1 & 1, frame.rip],
        ),
        // Present, a write: read-only memory. Present, a fetch: not executable.
        14 if error & 0b11 == 0b11 => (
            ATTEMPTED_WRITE_TO_READONLY_MEMORY,
            [address, error, 0, frame.rip],
        ),
        14 if error & 0b1_0001 == 0b1_0001 => (
            ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY,
            [address, error, 0, frame.rip],
        ),
        14 => (PAGE_FAULT_IN_NONPAGED_AREA, [address, error, frame.rip, 0]),
        0 => (KMODE_EXCEPTION_NOT_HANDLED, [0xC000_0094, frame.rip, 0, 0]),
        3 => (KMODE_EXCEPTION_NOT_HANDLED, [0x8000_0003, frame.rip, 0, 0]),
        6 => (KMODE_EXCEPTION_NOT_HANDLED, [0xC000_001D, frame.rip, 0, 0]),
        13 => (
            KMODE_EXCEPTION_NOT_HANDLED,
            [0xC000_0005, frame.rip, error, u64::MAX],
        ),
        17 => (KMODE_EXCEPTION_NOT_HANDLED, [0x8000_0002, frame.rip, 0, 0]),
        _ => (
            UNEXPECTED_KERNEL_MODE_TRAP,
            [u64::from(vector), error, frame.rip, 0],
        ),
    };
    bugcheck::raise_with(code, parameters, Some(frame))
}

/// NMI, double fault, machine check; each on its own stack.
pub(crate) extern "C" fn KiDispatchIst(frame: &mut TrapFrame) {
    match frame.vector {
        2 => nmi::interrupt(frame.rip),
        8 => bugcheck::raise_with(
            UNEXPECTED_KERNEL_MODE_TRAP,
            [8, instr::read_cr2(), frame.rip, frame.rsp],
            Some(frame),
        ),
        _ => bugcheck::raise_with(
            MACHINE_CHECK_EXCEPTION,
            [frame.vector, frame.rip, 0, 0],
            Some(frame),
        ),
    }
}

/// A system call; true if the frame may be left by SYSRET.
pub(crate) extern "C" fn KiDispatchSystemCall(frame: &mut TrapFrame) -> bool {
    // SAFETY: on the thread's own kernel stack, at PASSIVE_LEVEL.
    unsafe { instr::sti() };
    let (rip, rsp, flags) = (frame.rip, frame.rsp, frame.rflags);
    ps::user::system_call(frame);
    instr::cli();
    ps::user::before_return(frame);
    // SYSRET with a non-canonical RIP faults in ring 0 on Intel processors.
    frame.rip == rip
        && frame.rsp == rsp
        && frame.rflags == flags
        && rip < crate::mm::USER_END as u64
}
