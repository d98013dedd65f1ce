//! The handlers of root mode's own IDT: stubs that save what a Rust function may
//! clobber.
//!
//! The NMI's stub tells its handler whether it struck in Intel's *resume window*,
//! and keeps out of Rust in its *leave window*, where GS is no longer ours (both
//! in [`crate::vmx::entry`]). On AMD NMIs are taken only where the handler of exits
//! opens the global interrupt flag for them.

use core::arch::global_asm;

global_asm!(
    // ---- exceptions in root mode: 32 stubs of 16 bytes
    ".globl hvdetect_exception_stubs",
    ".balign 16",
    "hvdetect_exception_stubs:",
    ".set hvdetect_vector, 0",
    ".rept 32",
    ".balign 16",
    ".if (hvdetect_vector == 8) || (hvdetect_vector >= 10 && hvdetect_vector <= 14) || (hvdetect_vector == 17) || (hvdetect_vector == 21) || (hvdetect_vector == 29) || (hvdetect_vector == 30)",
    "    nop",
    "    nop",
    ".else",
    "    push 0",
    ".endif",
    "    push hvdetect_vector",
    "    jmp hvdetect_exception_common",
    ".set hvdetect_vector, hvdetect_vector + 1",
    ".endr",
    ".balign 16",
    "hvdetect_exception_common:", // vector, error code, RIP, CS, RFLAGS, RSP, SS
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    lea rcx, [rsp + 0x38]",
    "    push rbp",
    "    mov rbp, rsp",
    "    and rsp, -16",
    "    sub rsp, 0x20",
    "    call hvdetect_root_exception",
    "    mov rsp, rbp",
    "    pop rbp",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rdx",
    "    pop rcx",
    "    pop rax",
    "    add rsp, 16",
    "    iretq",
    // ---- NMI in root mode, on its own stack
    ".globl hvdetect_root_nmi_stub",
    ".balign 16",
    "hvdetect_root_nmi_stub:",
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    mov rcx, [rsp + 0x38]", // interrupted RIP
    "    push rbp",
    "    mov rbp, rsp",
    "    and rsp, -16",
    "    sub rsp, 0x80",
    "    movups [rsp + 0x20], xmm0",
    "    movups [rsp + 0x30], xmm1",
    "    movups [rsp + 0x40], xmm2",
    "    movups [rsp + 0x50], xmm3",
    "    movups [rsp + 0x60], xmm4",
    "    movups [rsp + 0x70], xmm5",
    "    xor edx, edx",
    "    lea rax, [rip + hvdetect_resume_window]",
    "    cmp rcx, rax",
    "    jb 4f",
    "    lea rax, [rip + hvdetect_resume_window_end]",
    "    cmp rcx, rax",
    "    jae 4f",
    "    inc edx",
    "    jmp 2f",
    "4:",
    "    lea rax, [rip + hvdetect_leave_window]",
    "    cmp rcx, rax",
    "    jb 2f",
    "    lea rax, [rip + hvdetect_leave_window_end]",
    "    cmp rcx, rax",
    "    jae 2f",
    "    mov dword ptr [r8 + 0xA8], 1", // R8 is the stub's LeaveFrame; GS may be the guest's
    "    jmp 3f",
    "2:  mov rcx, rdx",
    "    call hvdetect_root_nmi",
    "3:",
    "    movups xmm0, [rsp + 0x20]",
    "    movups xmm1, [rsp + 0x30]",
    "    movups xmm2, [rsp + 0x40]",
    "    movups xmm3, [rsp + 0x50]",
    "    movups xmm4, [rsp + 0x60]",
    "    movups xmm5, [rsp + 0x70]",
    "    mov rsp, rbp",
    "    pop rbp",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rdx",
    "    pop rcx",
    "    pop rax",
    "    iretq",
    // ---- addresses of the stubs, position-independent
    ".globl hvdetect_stub_address",
    ".balign 16",
    "hvdetect_stub_address:", // ecx: 0 NMI, 1 first exception stub
    "    lea rax, [rip + hvdetect_root_nmi_stub]",
    "    test ecx, ecx",
    "    jz 2f",
    "    lea rax, [rip + hvdetect_exception_stubs]",
    "2:  ret",
);

unsafe extern "win64" {
    fn hvdetect_stub_address(which: u32) -> u64;
}

/// Address of the handler of NMIs in root mode.
#[must_use]
pub fn nmi_address() -> u64 {
    // SAFETY: computes an address.
    unsafe { hvdetect_stub_address(0) }
}

/// Address of the handler of an exception (0 to 31) in root mode.
#[must_use]
pub fn exception_address(vector: u8) -> u64 {
    // SAFETY: computes an address.
    unsafe { hvdetect_stub_address(1) + u64::from(vector & 31) * 16 }
}
