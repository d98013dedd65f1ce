//! The local APIC, as far as a kick needs it.
//!
//! The guest owns the APIC and may move it or switch it to x2APIC mode at any
//! time, so IA32_APIC_BASE is asked on each use. In xAPIC mode the interrupt
//! command register is two registers, and the guest may have been interrupted
//! between writing the first and the second: the first is put back.
//!
//! Intel SDM vol. 3, "Issuing Interprocessor Interrupts" and "Extended XAPIC
//! (x2APIC)".

use crate::instr;
use crate::percpu::Core;

const APIC_BASE: u32 = 0x1B;
const X2APIC_ICR: u32 = 0x830;
const X2APIC_ENABLED: u64 = 1 << 10;
const APIC_ENABLED: u64 = 1 << 11;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
/// Delivery mode NMI, level assert, physical destination.
const NMI: u32 = 0x4400;
/// Delivery mode INIT, level assert, physical destination.
const INIT: u32 = 0x4500;
const SEND_PENDING: u32 = 1 << 12;

/// Sends an NMI to the core with the given APIC identifier.
pub fn send_nmi(core: &Core, target: u32) {
    send(core, target, NMI);
}

/// Sends INIT to the core with the given APIC identifier.
pub fn send_init(core: &Core, target: u32) {
    send(core, target, INIT);
}

fn send(core: &Core, target: u32, command: u32) {
    // SAFETY: IA32_APIC_BASE exists on every processor with VMX or SVM.
    let base = unsafe { instr::rdmsr(APIC_BASE) };
    if base & APIC_ENABLED == 0 {
        return;
    }
    if base & X2APIC_ENABLED != 0 {
        // SAFETY: the register exists in x2APIC mode; an NMI or INIT to one of our cores.
        unsafe { instr::wrmsr(X2APIC_ICR, u64::from(target) << 32 | u64::from(command)) };
        return;
    }
    let Some(window) = core.state.apic_window.get() else {
        return;
    };
    let registers = window.show_device(base & 0x000F_FFFF_FFFF_F000);
    let read = |offset: u64| {
        // SAFETY: a register of the local APIC, through this core's window.
        unsafe { ((registers + offset) as *const u32).read_volatile() }
    };
    let write = |offset: u64, value: u32| {
        // SAFETY: a register of the local APIC, through this core's window.
        unsafe { ((registers + offset) as *mut u32).write_volatile(value) };
    };
    let settle = || {
        let mut rounds = 0_u32;
        while read(ICR_LOW) & SEND_PENDING != 0 && rounds < 1 << 20 {
            core::hint::spin_loop();
            rounds += 1;
        }
    };
    let before = read(ICR_HIGH);
    settle();
    write(ICR_HIGH, target << 24);
    write(ICR_LOW, command);
    settle();
    write(ICR_HIGH, before);
}
