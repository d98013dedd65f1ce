//! Ends of the machine: exit with a code, reset.
//!
//! Any IRQL; owns nothing.

use super::instr;

/// Exit code port of the lab's own Bochs instrumentation.
const PORT_LAB_EXIT: u16 = 0xE5;
/// QEMU's isa-debug-exit: the process ends with `(code << 1) | 1`.
const PORT_QEMU_EXIT: u16 = 0xF4;
/// Bochs ends when it reads `Shutdown` here; the process ends with 1.
const PORT_BOCHS_SHUTDOWN: u16 = 0x8900;

/// Ends the emulator with this code, by the first way that it understands.
pub fn exit(code: u8) -> ! {
    super::serial::drain();
    // SAFETY: the machine ends; no device matters any more.
    unsafe { instr::outb(PORT_LAB_EXIT, code) };
    // SAFETY: as above.
    unsafe { instr::outl(PORT_QEMU_EXIT, u32::from(code)) };
    for letter in *b"Shutdown" {
        // SAFETY: as above.
        unsafe { instr::outb(PORT_BOCHS_SHUTDOWN, letter) };
    }
    instr::halt()
}

/// Resets the machine through the chipset, then the keyboard controller.
pub fn reset() -> ! {
    // SAFETY: the machine ends; no device matters any more.
    unsafe { instr::outb(0xCF9, 0x06) };
    // SAFETY: as above.
    unsafe { instr::outb(0x64, 0xFE) };
    instr::halt()
}
