//! The stubs between guest and root mode: the first VMRUN, #VMEXIT, the VMRUNs
//! that follow, and leaving.
//!
//! The stack of root mode after an exit, from the top down:
//!
//! ```text
//! stack's end    -8  (padding)
//!               -48  RIP CS RFLAGS RSP SS   frame of IRETQ, used when leaving;
//!                    until then the addresses of the guest's and the host's VMCB
//! HOST_RSP ->   -48
//!               -56  RAX RCX RDX R8 R9 R10 R11 RBX     GuestRegisters,
//!              -168  RBP RSI RDI R12 R13 R14 R15       lowest first
//! ```
//!
//! VMRUN goes on behind itself at the exit, with the host's RAX and RSP; the
//! guest's are in the VMCB. VMRUN leaves FS, GS, TR, LDTR and the system-call MSRs
//! alone, so each way is one VMSAVE and one VMLOAD longer (AMD APM vol. 2, "State
//! Saved by VMSAVE").
//!
//! **The global interrupt flag** is set in root mode, so that NMIs are taken by root
//! mode's own handler as they come: two that wait are one for the processor, and a
//! kick and an NMI of the guest must not meet. It is clear only from the last look at
//! `look_again` before VMRUN to the first moment after it at which the handler has its
//! GS base and task register back. What comes in between waits, and exits at once.
//! Leaving clears it until the guest's IDT is loaded.

use core::arch::global_asm;
use core::mem::offset_of;

use super::VMCB;
use super::fields::{Control, Vmcb};
use crate::percpu::{Core, Page};
use crate::registers::GuestRegisters;

/// Where the VMCB's TLB control lies from the GS base on.
const TLB_CONTROL: usize = offset_of!(Core, regions)
    + VMCB * size_of::<Page>()
    + offset_of!(Vmcb, control)
    + offset_of!(Control, tlb_control);

/// What root mode runs with, for the launch stub.
#[repr(C)]
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the registers' names say it")]
pub struct HostFrame {
    pub cr4: u64,
    pub cr3: u64,
    /// Limit in the two highest bytes, then the base: LGDT reads from byte 6 on.
    pub gdt: [u64; 2],
    pub idt: [u64; 2],
    pub tr: u64,
    pub gs_base: u64,
    /// RSP; the two quadwords above it are the addresses of the VMCBs.
    pub rsp: u64,
    /// Where a copy of the VMCB is to be kept: a processor that refuses a VMCB may
    /// have written to it.
    pub copy: u64,
}

const _: () = assert!(size_of::<HostFrame>() == 80);

global_asm!(
    // ---- launch: rcx = &Vmcb, rdx = &HostFrame. rax = 0 as the new guest, 3 the
    //      processor refused the VMCB and the exit handler has left
    ".globl hvdetect_svm_launch",
    ".balign 16",
    "hvdetect_svm_launch:",
    "    mov [rcx + 0x5D8], rsp", // guest RSP, RIP, RAX
    "    lea rax, [rip + 2f]",
    "    mov [rcx + 0x578], rax",
    "    mov qword ptr [rcx + 0x5F8], 0",
    "    mov r8, [rdx + 0x40]", // root mode's stack
    "    clgi",
    "    mov rax, [r8]", // the guest's FS, GS, TR, LDTR and system-call MSRs
    "    vmsave rax",
    "    mov r9, rsi", // the copy
    "    mov r10, rdi",
    "    mov rsi, rcx",
    "    mov rdi, [rdx + 0x48]",
    "    mov ecx, 512",
    "    rep movsq",
    "    mov rsi, r9",
    "    mov rdi, r10",
    "    mov rax, [rdx + 0x00]", // CR4 first: without PCIDs any CR3 may follow
    "    mov cr4, rax",
    "    lgdt [rdx + 0x16]",
    "    lidt [rdx + 0x26]",
    "    mov r9, [rdx + 0x38]",   // GS base
    "    mov r10, [rdx + 0x08]",  // CR3
    "    mov r11d, [rdx + 0x30]", // TR
    "    mov rsp, r8",
    "    mov cr3, r10",
    "    xor eax, eax",
    "    mov ds, ax",
    "    mov es, ax",
    "    mov fs, ax",
    "    mov gs, ax",
    "    lldt ax",
    "    ltr r11w",
    "    mov ecx, 0xC0000101", // GS base
    "    mov eax, r9d",
    "    mov rdx, r9",
    "    shr rdx, 32",
    "    wrmsr",
    "    mov rax, [rsp + 8]",
    "    vmsave rax",
    "    jmp hvdetect_svm_enter",
    "2:  ret",
    // ---- entry with the guest's registers in place, and exit
    ".globl hvdetect_svm_enter",
    ".balign 16",
    "hvdetect_svm_enter:",
    "3:  clgi",
    "    xor eax, eax",
    "    cmp dword ptr gs:[8], eax",
    "    jne 6f",
    "    mov rax, [rsp]",
    "    vmload rax",
    "    vmrun rax",
    "    vmsave rax",
    "    mov rax, [rsp + 8]", // the host's GS base and task register
    "    vmload rax",
    "    mov byte ptr gs:[{TLB_CONTROL}], 0", // done; NMIs ask for the next from here on
    "6:  stgi",
    "    push rax", // the place of the guest's RAX
    "    push rcx",
    "    push rdx",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    push rbx",
    "    push rbp",
    "    push rsi",
    "    push rdi",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    mov rcx, rsp",
    "    mov rdx, rax", // 0 when only a look is needed
    "    sub rsp, 0x98",
    "    movups [rsp + 0x20], xmm0",
    "    movups [rsp + 0x30], xmm1",
    "    movups [rsp + 0x40], xmm2",
    "    movups [rsp + 0x50], xmm3",
    "    movups [rsp + 0x60], xmm4",
    "    movups [rsp + 0x70], xmm5",
    "    stmxcsr [rsp + 0x80]",
    "    mov dword ptr [rsp + 0x88], 0x1F80",
    "    ldmxcsr [rsp + 0x88]",
    "    call hvdetect_svm_slow",
    "    movups xmm0, [rsp + 0x20]",
    "    movups xmm1, [rsp + 0x30]",
    "    movups xmm2, [rsp + 0x40]",
    "    movups xmm3, [rsp + 0x50]",
    "    movups xmm4, [rsp + 0x60]",
    "    movups xmm5, [rsp + 0x70]",
    "    ldmxcsr [rsp + 0x80]",
    "    add rsp, 0x98",
    "    cmp eax, 1",
    "    je 4f",
    "5:",
    crate::registers::pop_all!(),
    "    jmp 3b",
    // ---- leave: RSP = GuestRegisters
    "4:  clgi",
    "    sub rsp, 0x28",
    "    call hvdetect_leave_frame",
    "    add rsp, 0x28",
    "    mov r8, rax",
    "    mov r9, [rsp + 0x78]", // the guest's VMCB
    "    mov rax, [r8 + 0x00]", // CR4 first: CR3 may hold a PCID
    "    mov cr4, rax",
    "    mov rax, [r8 + 0x08]",
    "    mov cr3, rax",
    "    lgdt [r8 + 0x26]",
    "    mov eax, [r8 + 0x50]",
    "    mov ds, ax",
    "    mov eax, [r8 + 0x58]",
    "    mov es, ax",
    "    mov rax, r9", // FS, GS, TR, LDTR, system-call MSRs
    "    vmload rax",
    "    lidt [r8 + 0x36]",
    "    stgi",                // from here on an NMI is the guest's own
    "    mov ecx, 0xC0000080", // EFER without SVME
    "    mov eax, [r8 + 0xB0]",
    "    mov edx, [r8 + 0xB4]",
    "    wrmsr",
    "    jmp hvdetect_leave_return",
    // ---- root mode failed: rcx = address of GuestRegisters; enters the guest
    //      with what has been prepared in the VMCB
    ".globl hvdetect_svm_enter_after_fault",
    ".balign 16",
    "hvdetect_svm_enter_after_fault:",
    "    mov rsp, rcx",
    "    jmp 5b",
    TLB_CONTROL = const TLB_CONTROL,
);

unsafe extern "win64" {
    fn hvdetect_svm_launch(vmcb: *const Vmcb, host: *const HostFrame) -> u32;
    fn hvdetect_svm_enter_after_fault(registers: *const GuestRegisters) -> !;
}

/// Why the first VMRUN did not enter the guest: the processor refused the VMCB;
/// the core is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Enters root mode and from it, by VMRUN, the guest: the caller. Returns as the
/// guest.
///
/// # Errors
/// The processor refused the VMCB; the caller runs without SVM as before.
///
/// # Safety
/// EFER.SVME is set, VM_HSAVE_PA is valid, interrupts are off; the VMCB is complete
/// but for RSP, RIP, RAX and what VMSAVE saves; the frame holds what root mode
/// needs, and both are mapped at the same addresses with its page tables.
pub unsafe fn launch(vmcb: &Vmcb, host: &HostFrame) -> Result<(), Refused> {
    // SAFETY: the caller's promise.
    match unsafe { hvdetect_svm_launch(vmcb, host) } {
        0 => Ok(()),
        _ => Err(Refused),
    }
}

/// Gives up what root mode was doing and enters the guest.
///
/// # Safety
/// Root mode; the VMCB is fit for an entry; `registers` are those that the stub
/// saved at the last exit.
pub unsafe fn enter_after_fault(registers: *const GuestRegisters) -> ! {
    // SAFETY: the caller's promise.
    unsafe { hvdetect_svm_enter_after_fault(registers) }
}
