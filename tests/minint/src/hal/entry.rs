//! Entry stubs: interrupts, system calls, context switch, first steps of a thread
//! and of an application processor. Assembly only; what it calls is in `ke`.
//!
//! Stack picture of a [`TrapFrame`], from low to high: XMM0–5, MXCSR, the saved GS
//! base of IST entries, general registers, vector, error code, then what the
//! processor pushed. Compiled code of this kernel uses SSE, so the volatile XMM
//! registers are saved on each entry; the rest of the extended state only at a
//! context switch (XSAVE).

use core::arch::global_asm;
use core::mem::offset_of;

/// Registers of interrupted code.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy)]
pub struct TrapFrame {
    /// XMM0–XMM5.
    pub xmm: [u128; 6],
    /// MXCSR.
    pub mxcsr: u64,
    /// GS base before the entry, for NMI, #DF and #MC.
    pub gs_base: u64,
    /// RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8–R15.
    pub general: [u64; 15],
    /// Vector, or 0x100 for a system call.
    pub vector: u64,
    /// Error code, 0 where the processor pushes none.
    pub error: u64,
    /// RIP.
    pub rip: u64,
    /// CS.
    pub cs: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RSP.
    pub rsp: u64,
    /// SS.
    pub ss: u64,
}

const _: () = assert!(size_of::<TrapFrame>() == 288);
const _: () = assert!(offset_of!(TrapFrame, general) == 112);
const _: () = assert!(offset_of!(TrapFrame, vector) == 232);

impl TrapFrame {
    /// Whether ring 3 was interrupted.
    pub fn from_user(&self) -> bool {
        self.cs & 3 != 0
    }
}

/// Vector number of a system call's frame.
pub const SYSTEM_CALL: u64 = 0x100;

unsafe extern "C" {
    fn KiVectors();
    fn KiSystemCall64();
    /// Saves the running thread's registers and its extended state at `*old`, loads those of `new`.
    pub(crate) fn KiSwapContext(old: *mut SwitchFrame, new: *const SwitchFrame, mask: u64);
    /// First instructions of a thread: RBX holds the routine, R12 its argument.
    pub(crate) fn KiThreadStartup();
    /// Leaves to ring 3 through a trap frame.
    pub(crate) fn KiExitToFrame(frame: *const TrapFrame) -> !;
    /// Calls `routine(argument)` on another stack.
    pub(crate) fn KiCallOnStack(routine: extern "C" fn(usize), argument: usize, stack: usize);
    static KiStartupCode: u8;
    static KiStartupCodeEnd: u8;
}

/// Where a thread's context lies while it does not run.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SwitchFrame {
    /// Stack pointer.
    pub(crate) rsp: usize,
    /// XSAVE area, aligned to 64.
    pub(crate) extended: usize,
}

/// Address of the stub for `vector`.
pub(crate) fn vector(vector: usize) -> usize {
    KiVectors as *const () as usize + vector * 16
}

/// Address of the system-call stub.
pub(crate) fn system_call() -> usize {
    KiSystemCall64 as *const () as usize
}

/// The real-mode start code of the application processors.
pub(crate) fn startup_code() -> &'static [u8] {
    let start = &raw const KiStartupCode;
    let length = (&raw const KiStartupCodeEnd) as usize - start as usize;
    // SAFETY: both labels stand in this image's read-only data, in this order.
    unsafe { core::slice::from_raw_parts(start, length) }
}

// Vectors: 16 bytes each. 8, 10-14, 17, 21, 29 and 30 come with an error code.
global_asm!(
    ".text",
    ".globl KiVectors",
    ".balign 16",
    "KiVectors:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)",
    ".else",
    "push 0",
    ".endif",
    ".byte 0x68",
    ".long vector",
    ".if (vector == 2) || (vector == 8) || (vector == 18)",
    "jmp KiIstEntry",
    ".else",
    "jmp KiInterruptEntry",
    ".endif",
    ".set vector, vector + 1",
    ".endr",
    // In both entries the general registers are pushed so that `general` reads
    // RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8..R15 upward.
    ".macro KI_SAVE",
    "push r15",
    "push r14",
    "push r13",
    "push r12",
    "push r11",
    "push r10",
    "push r9",
    "push r8",
    "push rdi",
    "push rsi",
    "push rbp",
    "push rbx",
    "push rdx",
    "push rcx",
    "push rax",
    "sub rsp, 112",
    "movaps [rsp], xmm0",
    "movaps [rsp + 16], xmm1",
    "movaps [rsp + 32], xmm2",
    "movaps [rsp + 48], xmm3",
    "movaps [rsp + 64], xmm4",
    "movaps [rsp + 80], xmm5",
    "stmxcsr [rsp + 96]",
    "ldmxcsr [rip + KiDefaultMxcsr]",
    "cld",
    ".endm",
    ".macro KI_RESTORE",
    "movaps xmm0, [rsp]",
    "movaps xmm1, [rsp + 16]",
    "movaps xmm2, [rsp + 32]",
    "movaps xmm3, [rsp + 48]",
    "movaps xmm4, [rsp + 64]",
    "movaps xmm5, [rsp + 80]",
    "ldmxcsr [rsp + 96]",
    "add rsp, 112",
    "pop rax",
    "pop rcx",
    "pop rdx",
    "pop rbx",
    "pop rbp",
    "pop rsi",
    "pop rdi",
    "pop r8",
    "pop r9",
    "pop r10",
    "pop r11",
    "pop r12",
    "pop r13",
    "pop r14",
    "pop r15",
    ".endm",
    ".balign 16",
    "KiInterruptEntry:",
    "test byte ptr [rsp + 24], 3",
    "jz 2f",
    "swapgs",
    "2:",
    "KI_SAVE",
    "mov rcx, rsp",
    "sub rsp, 32",
    "call {interrupt}",
    "add rsp, 32",
    // Interrupts are off again.
    "KiInterruptExit:",
    "KI_RESTORE",
    "test byte ptr [rsp + 24], 3",
    "jz 3f",
    "swapgs",
    "3:",
    "add rsp, 16",
    "iretq",
    // NMI, #DF, #MC: GS may be anyone's, the stack knows whose processor this is:
    // its end holds the KPCR (`cpu::set_ist`).
    ".balign 16",
    "KiIstEntry:",
    "KI_SAVE",
    "mov ecx, 0xC0000101",
    "rdmsr",
    "mov [rsp + 104], eax",
    "mov [rsp + 108], edx",
    "lea rax, [rsp + 288]", // end of the frame = end of the stack, at the first level
    "mov edx, [rax + 4]",
    "mov eax, [rax]",
    "wrmsr",
    "mov rcx, rsp",
    "sub rsp, 32",
    "call {ist}",
    "add rsp, 32",
    "mov ecx, 0xC0000101",
    "mov eax, [rsp + 104]",
    "mov edx, [rsp + 108]",
    "wrmsr",
    "KI_RESTORE",
    "add rsp, 16",
    "iretq",
    // System call: RCX = ring-3 RIP, R11 = its flags; interrupts are off (FMASK).
    ".globl KiSystemCall64",
    ".balign 16",
    "KiSystemCall64:",
    "swapgs",
    "mov gs:[0x10], rsp",
    "mov rsp, gs:[0x1A8]",
    "push 0x2B",
    "push qword ptr gs:[0x10]",
    "push r11",
    "push 0x33",
    "push rcx",
    "push 0",
    "push 0x100",
    "KI_SAVE",
    "mov rcx, rsp",
    "sub rsp, 32",
    "call {system_call}",
    "add rsp, 32",
    // AL = 1: the frame is as it came, SYSRET may be used.
    "test al, al",
    "jz KiInterruptExit",
    "KI_RESTORE",
    "mov rcx, [rsp + 16]",
    "mov r11, [rsp + 32]",
    "mov rsp, [rsp + 40]",
    "swapgs",
    "sysretq",
    ".globl KiExitToFrame",
    ".balign 16",
    "KiExitToFrame:",
    "cli",
    "mov rsp, rcx",
    "jmp KiInterruptExit",
    // RCX = old frame, RDX = new frame, R8 = components. XSAVE covers XMM6-15.
    ".globl KiSwapContext",
    ".balign 16",
    "KiSwapContext:",
    "push rbp",
    "push rbx",
    "push rsi",
    "push rdi",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov r9, rdx",
    "mov r10, [rcx + 8]",
    "mov eax, r8d",
    "mov rdx, r8",
    "shr rdx, 32",
    "test r8, r8",
    "jz 4f",
    "xsave64 [r10]",
    "mov [rcx], rsp",
    "mov rsp, [r9]",
    "mov r10, [r9 + 8]",
    "xrstor64 [r10]",
    "jmp 5f",
    "4:",
    "fxsave64 [r10]",
    "mov [rcx], rsp",
    "mov rsp, [r9]",
    "mov r10, [r9 + 8]",
    "fxrstor64 [r10]",
    "5:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rdi",
    "pop rsi",
    "pop rbx",
    "pop rbp",
    "ret",
    ".globl KiThreadStartup",
    ".balign 16",
    "KiThreadStartup:",
    "mov rcx, rbx",
    "mov rdx, r12",
    "xor ebp, ebp",
    "sub rsp, 40",
    "call {thread}",
    "ud2",
    ".globl KiCallOnStack",
    ".balign 16",
    "KiCallOnStack:",
    "push rbp",
    "mov rbp, rsp",
    "mov rax, rcx",
    "mov rcx, rdx",
    "mov rsp, r8",
    "sub rsp, 32",
    "call rax",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    ".section .rdata,\"dr\"",
    ".balign 16",
    "KiDefaultMxcsr:",
    ".long 0x1F80",
    interrupt = sym crate::ke::trap::KiDispatchInterrupt,
    ist = sym crate::ke::trap::KiDispatchIst,
    system_call = sym crate::ke::trap::KiDispatchSystemCall,
    thread = sym crate::ke::thread::KiThreadMain,
);

// Start of an application processor: real mode at 0x8000 (the page that the
// startup IPI names), to long mode on the startup CR3, to the kernel. The block at
// 0x8F00 is filled by the bootstrap processor: CR3, stack, entry, argument.
// Intel SDM volume 3, 11.4.4.2 "Typical AP Initialization Sequence".
global_asm!(
    ".section .rdata,\"dr\"",
    ".balign 16",
    ".globl KiStartupCode",
    "KiStartupCode:",
    ".byte 0xFA",                   // cli
    ".byte 0x8C, 0xC8",             // mov ax, cs
    ".byte 0x8E, 0xD8",             // mov ds, ax
    ".byte 0x66, 0x0F, 0x01, 0x16", // lgdt [gdtr]
    ".short KiStartupGdtr - KiStartupCode",
    ".byte 0x66, 0xB8", // mov eax, PAE | OSFXSR | OSXMMEXCPT
    ".long 0x620",
    ".byte 0x0F, 0x22, 0xE0",       // mov cr4, eax
    ".byte 0x66, 0xA1, 0x00, 0x0F", // mov eax, [0x0F00]
    ".byte 0x0F, 0x22, 0xD8",       // mov cr3, eax
    ".byte 0x66, 0xB9",             // mov ecx, IA32_EFER
    ".long 0xC0000080",
    ".byte 0x0F, 0x32", // rdmsr
    ".byte 0x66, 0x0D", // or eax, LME | NXE
    ".long 0x900",
    ".byte 0x0F, 0x30",       // wrmsr
    ".byte 0x0F, 0x20, 0xC0", // mov eax, cr0
    ".byte 0x66, 0x25",       // and eax, ~(CD | NW)
    ".long 0x9FFFFFFF",
    ".byte 0x66, 0x0D", // or eax, PG | WP | MP | PE
    ".long 0x80010003",
    ".byte 0x0F, 0x22, 0xC0", // mov cr0, eax
    ".byte 0x66, 0xEA",       // jmp far 0x08:long mode
    ".long 0x8000 + (KiStartupLong - KiStartupCode)",
    ".short 8",
    "KiStartupLong:",
    "xor eax, eax",
    "mov ss, ax",
    "mov ds, ax",
    "mov es, ax",
    "mov ebx, 0x8F00",
    "mov rsp, [rbx + 8]",
    "mov rax, [rbx + 16]",
    "mov rcx, [rbx + 24]",
    "sub rsp, 40",
    "xor ebp, ebp",
    "jmp rax",
    ".balign 8",
    "KiStartupGdt:",
    ".quad 0",
    ".quad 0x00AF9B000000FFFF",
    "KiStartupGdtr:",
    ".short 15",
    ".long 0x8000 + (KiStartupGdt - KiStartupCode)",
    ".globl KiStartupCodeEnd",
    "KiStartupCodeEnd:",
    ".text",
);

// `__chkstk` (Microsoft, "x64 prolog and epilog"): RAX bytes are about to be taken from
// the stack; each page of them is touched, so that a guard page is met.
global_asm!(
    ".text",
    ".globl __chkstk",
    "__chkstk:",
    "push rcx",
    "push rax",
    "lea rcx, [rsp + 24]",
    "cmp rax, 0x1000",
    "jb 3f",
    "2:",
    "sub rcx, 0x1000",
    "test [rcx], rcx",
    "sub rax, 0x1000",
    "cmp rax, 0x1000",
    "ja 2b",
    "3:",
    "sub rcx, rax",
    "test [rcx], rcx",
    "pop rax",
    "pop rcx",
    "ret",
);

/// `RtlCaptureContext`: the caller's registers, as they are when this returns.
/// Offsets are those of `CONTEXT` in winnt.h.
///
/// # Safety
/// RCX points to a `CONTEXT`.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn RtlCaptureContext() {
    core::arch::naked_asm!(
        "pushfq",
        "mov [rcx + 0x78], rax",
        "mov [rcx + 0x80], rcx",
        "mov [rcx + 0x88], rdx",
        "mov [rcx + 0x90], rbx",
        "lea rax, [rsp + 16]",
        "mov [rcx + 0x98], rax",
        "mov [rcx + 0xA0], rbp",
        "mov [rcx + 0xA8], rsi",
        "mov [rcx + 0xB0], rdi",
        "mov [rcx + 0xB8], r8",
        "mov [rcx + 0xC0], r9",
        "mov [rcx + 0xC8], r10",
        "mov [rcx + 0xD0], r11",
        "mov [rcx + 0xD8], r12",
        "mov [rcx + 0xE0], r13",
        "mov [rcx + 0xE8], r14",
        "mov [rcx + 0xF0], r15",
        "mov rax, [rsp + 8]",
        "mov [rcx + 0xF8], rax",
        "mov word ptr [rcx + 0x38], cs",
        "mov word ptr [rcx + 0x3A], ds",
        "mov word ptr [rcx + 0x3C], es",
        "mov word ptr [rcx + 0x3E], fs",
        "mov word ptr [rcx + 0x40], gs",
        "mov word ptr [rcx + 0x42], ss",
        "stmxcsr [rcx + 0x34]",
        "fxsave64 [rcx + 0x100]",
        "mov eax, [rsp]",
        "mov [rcx + 0x44], eax",
        "mov dword ptr [rcx + 0x30], 0x10000F",
        "mov rax, [rcx + 0x78]",
        "popfq",
        "ret",
    )
}
