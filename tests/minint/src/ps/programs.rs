//! The ring-3 programs: position-independent code in the kernel's read-only data,
//! copied into a process of its own.
//!
//! System calls: RAX = number, RDI and RSI = arguments, result in RAX; RCX and R11
//! are lost. 0 exit(code), 1 yield, 2 print(address, length), 3 time → 100 ns,
//! 4 argument, 5 progress(n), 6 sleep(100 ns). A program starts with RDI = argument,
//! RSI = its data page (read-write), RDX = its second code page (read-write-execute,
//! the JIT's).
//!
//! Exit codes above 0xE0 say what a program saw that must not be: 0xE1 a wrong
//! result or a lost register, 0xE2 stale code, 0xE3 time ran backwards.

use core::arch::global_asm;

/// A program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// Name, with a NUL behind its last letter in memory.
    pub(crate) name: &'static str,
    start: *const u8,
    end: *const u8,
}

// SAFETY: the pointers are to constant bytes of the image.
unsafe impl Sync for Program {}

impl Program {
    /// Its code.
    pub(crate) fn code(&self) -> &'static [u8] {
        let length = self.end as usize - self.start as usize;
        // SAFETY: both labels stand in the image's read-only data, in this order.
        unsafe { core::slice::from_raw_parts(self.start, length) }
    }
}

unsafe extern "C" {
    static KiProgramCompute: u8;
    static KiProgramJit: u8;
    static KiProgramSyscalls: u8;
    static KiProgramFault: u8;
    static KiProgramHello: u8;
    static KiProgramIdle: u8;
    static KiProgramsEnd: u8;
}

/// The literal without its NUL, which stays behind it in memory.
const fn named(text: &'static str) -> &'static str {
    let (name, _) = text.split_at(text.len() - 1);
    name
}

/// All programs.
pub(crate) static PROGRAMS: [Program; 6] = [
    Program {
        name: named("compute\0"),
        start: &raw const KiProgramCompute,
        end: &raw const KiProgramJit,
    },
    Program {
        name: named("jit\0"),
        start: &raw const KiProgramJit,
        end: &raw const KiProgramSyscalls,
    },
    Program {
        name: named("syscalls\0"),
        start: &raw const KiProgramSyscalls,
        end: &raw const KiProgramFault,
    },
    Program {
        name: named("fault\0"),
        start: &raw const KiProgramFault,
        end: &raw const KiProgramHello,
    },
    Program {
        name: named("hello\0"),
        start: &raw const KiProgramHello,
        end: &raw const KiProgramIdle,
    },
    Program {
        name: named("idle\0"),
        start: &raw const KiProgramIdle,
        end: &raw const KiProgramsEnd,
    },
];

/// Their names.
pub(crate) static NAMES: [&str; 6] = ["compute", "jit", "syscalls", "fault", "hello", "idle"];

global_asm!(
    ".section .rdata,\"dr\"",
    ".balign 16",
    // compute: RDI rounds (0: for ever). General and XMM registers, and memory, must
    // keep their values over interrupts and switches.
    ".globl KiProgramCompute",
    "KiProgramCompute:",
    "mov r12, rdi",
    "mov r13, rsi",
    "xor r14d, r14d",
    "movabs r15, 0x5851F42D4C957F2D",
    "mov rbx, 1",
    "movq xmm15, r15",
    "movq xmm6, rbx",
    "mov [r13], rbx",
    "2:",
    "mov ecx, 4096",
    "3:",
    "imul rbx, r15",
    "add rbx, 0x3039",
    "movq rax, xmm6",
    "imul rax, r15",
    "add rax, 0x3039",
    "movq xmm6, rax",
    "mov rdx, [r13]",
    "imul rdx, r15",
    "add rdx, 0x3039",
    "mov [r13], rdx",
    "cmp rax, rbx",
    "jne 9f",
    "cmp rdx, rbx",
    "jne 9f",
    "dec ecx",
    "jnz 3b",
    "movq rax, xmm15",
    "cmp rax, r15",
    "jne 9f",
    "inc r14",
    "mov eax, 5",
    "mov rdi, r14",
    "syscall",
    "cmp r14, r12",
    "jne 2b",
    "xor edi, edi",
    "jmp 8f",
    "9:",
    "mov edi, 0xE1",
    "8:",
    "xor eax, eax",
    "syscall",
    "ud2",
    // jit: RDI rounds of 64 functions each; writes `mov eax, imm32; ret` and calls it.
    ".balign 16",
    ".globl KiProgramJit",
    "KiProgramJit:",
    "mov r12, rdi",
    "mov r13, rdx",
    "xor r14d, r14d",
    "xor ebx, ebx",
    "2:",
    "mov ebp, 64",
    "3:",
    "inc ebx",
    "mov byte ptr [r13], 0xB8",
    "mov dword ptr [r13 + 1], ebx",
    "mov byte ptr [r13 + 5], 0xC3",
    "call r13",
    "cmp eax, ebx",
    "jne 9f",
    "dec ebp",
    "jnz 3b",
    "inc r14",
    "mov eax, 5",
    "mov rdi, r14",
    "syscall",
    "mov eax, 1",
    "syscall",
    "cmp r14, r12",
    "jne 2b",
    "xor edi, edi",
    "jmp 8f",
    "9:",
    "mov edi, 0xE2",
    "8:",
    "xor eax, eax",
    "syscall",
    "ud2",
    // syscalls: RDI rounds; time must not run backwards, registers must survive.
    ".balign 16",
    ".globl KiProgramSyscalls",
    "KiProgramSyscalls:",
    "mov r12, rdi",
    "xor r14d, r14d",
    "xor r13d, r13d",
    "2:",
    "mov eax, 3",
    "syscall",
    "cmp rax, r13",
    "jb 9f",
    "mov r13, rax",
    "mov eax, 1",
    "syscall",
    "test r14, 15",
    "jnz 4f",
    "mov eax, 6",
    "mov edi, 10000",
    "syscall",
    "4:",
    "inc r14",
    "mov eax, 5",
    "mov rdi, r14",
    "syscall",
    "cmp r14, r12",
    "jne 2b",
    "xor edi, edi",
    "jmp 8f",
    "9:",
    "mov edi, 0xE3",
    "8:",
    "xor eax, eax",
    "syscall",
    "ud2",
    // fault: touches what is not there (argument 0), the kernel half (1), a privileged
    // instruction (2), executes data (3).
    ".balign 16",
    ".globl KiProgramFault",
    "KiProgramFault:",
    "cmp edi, 1",
    "je 2f",
    "cmp edi, 2",
    "je 3f",
    "cmp edi, 3",
    "je 4f",
    "mov rax, [0x10]",
    "ud2",
    "2:",
    "movabs rax, 0xFFFFF80540000000",
    "mov rax, [rax]",
    "ud2",
    "3:",
    "hlt",
    "ud2",
    "4:",
    "mov byte ptr [rsi], 0xC3",
    "call rsi",
    "ud2",
    // hello: prints a line.
    ".balign 16",
    ".globl KiProgramHello",
    "KiProgramHello:",
    "lea rdi, [rip + 7f]",
    "mov esi, 17",
    "mov eax, 2",
    "syscall",
    "xor edi, edi",
    "xor eax, eax",
    "syscall",
    "ud2",
    "7:",
    ".ascii \"hello from ring 3\"",
    // idle: sleeps for ever.
    ".balign 16",
    ".globl KiProgramIdle",
    "KiProgramIdle:",
    "mov eax, 6",
    "mov edi, 1000000",
    "syscall",
    "jmp KiProgramIdle",
    ".globl KiProgramsEnd",
    "KiProgramsEnd:",
    ".text",
);
