//! The end of leaving, the same for both vendors: what the stub restores, and the
//! return to the guest, which is the machine again.
//!
//! A guest's NMI that was counted and could not be passed on before the core left
//! is raised as INT 2 once the guest's own IDT is loaded.

use core::arch::global_asm;
use core::cell::Cell;
use core::sync::atomic::Ordering;

use super::exceptions;

/// What the leave stub restores, in the order in which it reads it.
#[repr(C)]
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the registers' names say it")]
pub struct LeaveFrame {
    pub cr4: Cell<u64>,
    pub cr3: Cell<u64>,
    /// Limit in the two highest bytes, then the base: LGDT reads from byte 6 on.
    pub private_gdt: Cell<[u64; 2]>,
    pub gdt: Cell<[u64; 2]>,
    pub idt: Cell<[u64; 2]>,
    pub tr: Cell<u64>,
    pub ldtr: Cell<u64>,
    pub ds: Cell<u64>,
    pub es: Cell<u64>,
    pub fs: Cell<u64>,
    pub gs: Cell<u64>,
    pub fs_base: Cell<u64>,
    pub gs_base: Cell<u64>,
    pub rip: Cell<u64>,
    pub cs: Cell<u64>,
    pub rflags: Cell<u64>,
    pub rsp: Cell<u64>,
    pub ss: Cell<u64>,
    /// An NMI of the guest's waits.
    pub nmi: Cell<u64>,
    /// EFER, which AMD's stub restores.
    pub efer: Cell<u64>,
}

const _: () = assert!(size_of::<LeaveFrame>() == 184);

global_asm!(
    // ---- the guest's IDT is loaded, RSP = GuestRegisters, R8 = &LeaveFrame
    ".globl hvdetect_leave_return",
    ".balign 16",
    "hvdetect_leave_return:",
    "    cmp dword ptr [r8 + 0xA8], 0",
    "    je 2f",
    "    int 2",
    "2:  mov rax, [r8 + 0x80]", // the frame of IRETQ, above the registers
    "    mov [rsp + 0x78], rax",
    "    mov rax, [r8 + 0x88]",
    "    mov [rsp + 0x80], rax",
    "    mov rax, [r8 + 0x90]",
    "    mov [rsp + 0x88], rax",
    "    mov rax, [r8 + 0x98]",
    "    mov [rsp + 0x90], rax",
    "    mov rax, [r8 + 0xA0]",
    "    mov [rsp + 0x98], rax",
    crate::registers::pop_all!(),
    "    iretq",
);

/// The frame, for the stubs; NMIs are counted until they call this.
#[unsafe(no_mangle)]
extern "win64" fn hvdetect_leave_frame() -> *const LeaveFrame {
    // SAFETY: the stub still runs with the core's GS base.
    let core = unsafe { exceptions::current() };
    let frame = &core.state.leave;
    let waiting = core.state.guest_nmis.load(Ordering::Acquire) > 0;
    frame.nmi.set(waiting.into());
    frame
}

/// A pseudo-descriptor that LGDT and LIDT read from byte 6 on.
#[must_use]
pub const fn pointer(base: u64, limit: u64) -> [u64; 2] {
    [limit << 48, base]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_read_from_byte_six() {
        let bytes: std::vec::Vec<u8> = pointer(0x1122_3344_5566_7788, 0x6F)
            .iter()
            .flat_map(|half| half.to_le_bytes())
            .collect();
        assert_eq!(bytes[6..8], [0x6F, 0]);
        assert_eq!(bytes[8..16], 0x1122_3344_5566_7788_u64.to_le_bytes());
    }
}
