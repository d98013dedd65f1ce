//! The stubs between guest and root mode: VMLAUNCH, VM exit, VMRESUME, leaving,
//! and the handlers of root mode's own IDT.
//!
//! The stack of root mode after an exit, from the top down:
//!
//! ```text
//! stack's end    -8  (padding)
//!               -48  RIP CS RFLAGS RSP SS   frame of IRETQ, used when leaving
//! HOST_RSP ->   -48
//!               -56  RAX RCX RDX R8 R9 R10 R11 RBX     GuestRegisters,
//!              -168  RBP RSI RDI R12 R13 R14 R15       lowest first
//! ```
//!
//! **Two speeds.** CPUID is the one exit that an idle machine makes, and it is
//! answered here in some forty instructions with four registers saved. All else,
//! and the leaves and moments at which CPUID is not simple, goes to the handler in
//! Rust, for which all registers, XMM0-5 and MXCSR are saved; XMM6-15 are
//! preserved by the Microsoft x64 calling convention.
//!
//! **The resume window.** Between the last look at `look_again` and VMRESUME an
//! NMI could arrive that nobody would look at until the next exit. The NMI
//! handler recognises this window by its RIP; no VMCS access is under way there,
//! so there, and only there, it may open the NMI window itself.
//!
//! **The leave window.** After VMXOFF, while the guest's state is being restored,
//! the handler cannot use GS; an NMI there is only noted, and raised as soon as the
//! guest's IDT is back ([`crate::host::leaving`]).

use core::arch::global_asm;

use crate::registers::GuestRegisters;

global_asm!(
    // ---- launch: rax = 0 as the new guest, 1 VMfailInvalid, 2 VMfailValid, 3 the
    //      entry failed and the exit handler has left VMX operation
    ".globl hvdetect_vmx_launch",
    ".balign 16",
    "hvdetect_vmx_launch:",
    "    mov eax, 0x681C", // guest RSP
    "    vmwrite rax, rsp",
    "    lea rdx, [rip + 2f]",
    "    mov eax, 0x681E", // guest RIP
    "    vmwrite rax, rdx",
    "    xor eax, eax", // the new guest's
    "    vmlaunch",
    "    mov eax, 1",
    "    jc 3f",
    "    mov eax, 2",
    "3:  ret",
    "2:  ret",
    // ---- exit
    ".globl hvdetect_vmx_exit",
    ".balign 16",
    "hvdetect_vmx_exit:",
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    push r8",
    "    mov edx, 0x4402", // exit reason: CPUID?
    "    vmread rdx, rdx",
    "    cmp edx, 10",
    "    jne 5f",
    "    mov edx, 0x6820", // RFLAGS: neither TF nor RF
    "    vmread rdx, rdx",
    "    test edx, 0x10100",
    "    jnz 5f",
    "    mov edx, eax", // not the leaves that mirror the guest's CR4: 1 and 7
    "    and edx, -7",  // (3 and 5 go the same way)
    "    dec edx",
    "    jz 5f",
    "    mov edx, 0x4824", // interruptibility: no blocking by STI or MOV SS
    "    vmread rdx, rdx",
    "    test edx, 3",
    "    jnz 5f",
    "    mov edx, 0x681E", // RIP and the instruction's length
    "    vmread r8, rdx",
    "    mov edx, 0x440C",
    "    vmread rdx, rdx",
    "    add rdx, r8",
    "    xor r8, rdx", // 32-bit code wraps at 4 GB
    "    shr r8, 32",
    "    jnz 5f",
    "    mov r8d, 0x681E",
    "    vmwrite r8, rdx",
    "    mov rdx, gs:[16]",
    "    inc qword ptr [rdx + 80]", // exits[10]
    "    cpuid",
    "    mov r8, [rsp]",
    "    add rsp, 32",
    "    cmp dword ptr gs:[8], 0",
    ".globl hvdetect_resume_window",
    "hvdetect_resume_window:",
    "    jne 4f",
    "    vmresume",
    "2:  sub rsp, 0x28",
    "    call hvdetect_vmx_resume_failed",
    "3:  cmp dword ptr gs:[8], 0",
    "    jne 6f",
    crate::registers::pop_all!(),
    "    vmresume",
    ".globl hvdetect_resume_window_end",
    "hvdetect_resume_window_end:",
    "    jmp 2b",
    "4:  push rax", // look again with the guest's registers in place
    "    push rcx",
    "    push rdx",
    "    push r8",
    "    mov edx, 1",
    "    jmp 8f",
    "5:  xor edx, edx", // answer the exit
    "8:  push r9",
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
    "    jmp 9f",
    "6:  mov edx, 1", // look again with the registers on the stack
    "9:  mov rcx, rsp",
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
    "    call hvdetect_vmx_slow",
    "    movups xmm0, [rsp + 0x20]",
    "    movups xmm1, [rsp + 0x30]",
    "    movups xmm2, [rsp + 0x40]",
    "    movups xmm3, [rsp + 0x50]",
    "    movups xmm4, [rsp + 0x60]",
    "    movups xmm5, [rsp + 0x70]",
    "    ldmxcsr [rsp + 0x80]",
    "    add rsp, 0x98",
    "    cmp eax, 1",
    "    jne 3b",
    // ---- leave: VMX is off, RSP = GuestRegisters
    "    sub rsp, 0x28",
    "    call hvdetect_leave_frame",
    "    add rsp, 0x28",
    "    mov r8, rax",
    ".globl hvdetect_leave_window",
    "hvdetect_leave_window:",
    "    mov rax, [r8 + 0x00]", // CR4 first: CR3 may hold a PCID
    "    mov cr4, rax",
    "    mov rax, [r8 + 0x08]",
    "    mov cr3, rax",
    "    lgdt [r8 + 0x16]",     // the task register from a private, available
    "    mov eax, [r8 + 0x40]", // descriptor: the guest's own is marked busy
    "    ltr ax",
    "    lgdt [r8 + 0x26]",
    "    mov eax, [r8 + 0x48]",
    "    lldt ax",
    "    mov eax, [r8 + 0x50]",
    "    mov ds, ax",
    "    mov eax, [r8 + 0x58]",
    "    mov es, ax",
    "    mov eax, [r8 + 0x60]",
    "    mov fs, ax",
    "    mov eax, [r8 + 0x68]",
    "    mov gs, ax",
    "    mov ecx, 0xC0000100", // FS base
    "    mov eax, [r8 + 0x70]",
    "    mov edx, [r8 + 0x74]",
    "    wrmsr",
    "    mov ecx, 0xC0000101", // GS base
    "    mov eax, [r8 + 0x78]",
    "    mov edx, [r8 + 0x7C]",
    "    wrmsr",
    "    lidt [r8 + 0x36]", // from here on an NMI is the guest's own
    ".globl hvdetect_leave_window_end",
    "hvdetect_leave_window_end:",
    "    jmp hvdetect_leave_return",
    // ---- root mode failed: rcx = address of GuestRegisters; enters the guest
    //      with what has been prepared in the VMCS
    ".globl hvdetect_vmx_enter_after_fault",
    ".balign 16",
    "hvdetect_vmx_enter_after_fault:",
    "    mov rsp, rcx",
    "    jmp 3b",
    ".globl hvdetect_vmx_exit_address",
    ".balign 16",
    "hvdetect_vmx_exit_address:",
    "    lea rax, [rip + hvdetect_vmx_exit]",
    "    ret",
);

unsafe extern "win64" {
    fn hvdetect_vmx_launch() -> u32;
    fn hvdetect_vmx_exit_address() -> u64;
    fn hvdetect_vmx_enter_after_fault(registers: *const GuestRegisters) -> !;
}

/// Why VMLAUNCH did not enter the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchFailure {
    /// VMfailInvalid.
    Invalid,
    /// VMfailValid; the number is in the VMCS.
    Valid,
    /// The guest's state was refused by the entry itself; the core is out of VMX
    /// operation again, as it was before.
    Refused,
}

/// Executes VMLAUNCH with RSP and RIP of the caller. Returns as the guest.
///
/// # Errors
/// The instruction failed; the caller is still in root mode.
///
/// # Safety
/// A current VMCS is complete but for RSP and RIP.
pub unsafe fn launch() -> Result<(), LaunchFailure> {
    // SAFETY: the caller's promise.
    match unsafe { hvdetect_vmx_launch() } {
        0 => Ok(()),
        1 => Err(LaunchFailure::Invalid),
        3 => Err(LaunchFailure::Refused),
        _ => Err(LaunchFailure::Valid),
    }
}

/// Address of the exit stub, for HOST_RIP.
#[must_use]
pub fn exit_address() -> u64 {
    // SAFETY: computes an address.
    unsafe { hvdetect_vmx_exit_address() }
}

/// Gives up what root mode was doing and enters the guest.
///
/// # Safety
/// Root mode; the VMCS is fit for an entry; `registers` are those that the stub
/// saved at the last exit.
pub unsafe fn enter_after_fault(registers: *const GuestRegisters) -> ! {
    // SAFETY: the caller's promise.
    unsafe { hvdetect_vmx_enter_after_fault(registers) }
}
