//! The instructions: three pages of code, to be copied into executable pool.
//!
//! Page 0 ends with the first bytes of an instruction that page 1 ends. Page 1
//! holds all other forms up to 0xA00, then the areas that they write (see
//! `lib.rs`). Page 2 holds a RET. A form is called with a value in RCX, its
//! operand's address in RDX and where to put its registers in R8; interrupts are
//! off while it uses the operand as its stack.

use core::arch::global_asm;
use core::ffi::CStr;

/// What a form leaves in registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    flags: u64,
    rax: u64,
    rcx: u64,
    /// RSI less R8.
    rsi: u64,
    /// RDI less the operand's address.
    rdi: u64,
}

/// One form.
pub(crate) struct Form {
    pub(crate) name: &'static CStr,
    /// Its label.
    label: fn() -> u64,
    /// What its operand's address must be a multiple of.
    pub(crate) alignment: usize,
    /// It writes an image of the extended state.
    pub(crate) saves_state: bool,
}

type Routine = unsafe extern "C" fn(u64, *mut u8, *mut Output);

unsafe extern "C" {
    static FormsBase: u8;
    static FormsEnd: u8;
    static FormsTouch: u8;
}

/// The three pages.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const FormsBase;
    let bytes = (&raw const FormsEnd) as usize - start as usize;
    // SAFETY: both labels stand in this image's read-only data, in this order.
    unsafe { core::slice::from_raw_parts(start, bytes) }
}

fn offset(label: u64) -> u64 {
    label - (&raw const FormsBase) as u64
}

impl Form {
    /// Runs it in the copy of the code at `base`.
    pub(crate) fn run(&self, base: u64, operand: *mut u8) -> Output {
        const VALUE: u64 = 0x8182_8384_8586_8788;
        let mut output = Output::default();
        // SAFETY: the copy holds a function of this signature there.
        let routine =
            unsafe { core::mem::transmute::<u64, Routine>(base + offset((self.label)())) };
        // SAFETY: the operand's area is ours.
        unsafe { routine(VALUE, operand, &raw mut output) };
        output
    }
}

/// Runs an instruction in the second and the third page.
pub(crate) fn touch(base: u64) {
    let at = base + offset((&raw const FormsTouch) as u64);
    // SAFETY: a function without arguments lies there.
    let routine = unsafe { core::mem::transmute::<u64, unsafe extern "C" fn()>(at) };
    // SAFETY: it returns at once.
    unsafe { routine() };
}

macro_rules! forms {
    ($($label:ident, $name:literal, $alignment:literal, $saves:literal: $($text:literal),+;)*) => {
        unsafe extern "C" {
            $(static $label: u8;)*
        }

        /// Every form.
        pub(crate) static FORMS: &[Form] = &[
            Form {
                name: c"store by an instruction across two pages",
                label: || (&raw const FormCrossing) as u64,
                alignment: 1,
                saves_state: false,
            },
            $(Form {
                name: $name,
                label: || (&raw const $label) as u64,
                alignment: $alignment,
                saves_state: $saves,
            },)*
        ];

        global_asm!(
            ".section .rdata, \"dr\"",
            ".macro FORM_ENTER",
            "push rbx",
            "push rdi",
            "push rsi",
            "pushfq",
            "cli",
            "cld",
            "mov rdi, rdx",
            "mov rsi, r8",
            "mov rbx, rsp",
            "mov eax, 0x12345678",
            "cmp ecx, 7",
            ".endm",
            ".macro FORM_LEAVE",
            "jmp FormsLeave",
            ".endm",
            ".balign 4096",
            ".globl FormsBase",
            ".globl FormsEnd",
            ".globl FormsTouch",
            ".globl FormCrossing",
            "FormsBase:",
            ".skip 4000, 0xCC",
            "FormCrossing:",
            "FORM_ENTER",
            "jmp FormCrossingWrite",
            ".org FormsBase + 4096 - 4, 0x90",
            "FormCrossingWrite:",
            // REX.W C7 /0 with a 32-bit displacement and immediate: 11 bytes.
            ".byte 0x48, 0xC7, 0x82, 0, 0, 0, 0, 0x11, 0x22, 0x33, 0xF4",
            "FORM_LEAVE",
            "FormsLeave:",
            "mov rsp, rbx",
            "mov [r8 + 8], rax",
            "mov [r8 + 16], rcx",
            "pushfq",
            "pop rax",
            "mov [r8], rax",
            "sub rsi, r8",
            "mov [r8 + 24], rsi",
            "sub rdi, rdx",
            "mov [r8 + 32], rdi",
            "popfq",
            "pop rsi",
            "pop rdi",
            "pop rbx",
            "ret",
            $(
                concat!(".globl ", stringify!($label)),
                concat!(stringify!($label), ":"),
                "FORM_ENTER",
                $($text,)+
                "FORM_LEAVE",
            )*
            "FormsTouch:",
            "sub rsp, 40",
            "call FormsThird",
            "add rsp, 40",
            "ret",
            // Fails to assemble if the forms are longer.
            ".org FormsBase + 4096 + 0xA00, 0xCC",
            ".org FormsBase + 8192 + 512, 0xCC",
            "FormsThird:",
            "ret",
            ".org FormsBase + 8192 + 1024, 0xCC",
            "FormsEnd:",
            ".text",
        );
    };
}

unsafe extern "C" {
    static FormCrossing: u8;
}

forms! {
    FormStore8, c"MOV m8, r8", 1, false: "mov [rdx], cl";
    FormStoreHigh, c"MOV m8, CH", 1, false: "mov [rdx], ch";
    FormStoreSil, c"MOV m8, SIL", 1, false: "mov sil, cl", "mov [rdx], sil", "mov rsi, r8";
    FormStore16, c"MOV m16, r16", 1, false: "mov [rdx], cx";
    FormStore32, c"MOV m32, r32", 1, false: "mov [rdx], ecx";
    FormStore64, c"MOV m64, r64", 1, false: "mov [rdx], rcx";
    FormStoreHighRegister, c"MOV m64, r9", 1, false: "mov r9, rcx", "mov [rdx], r9";
    FormStoreScaled, c"MOV by base, index and displacement", 1, false:
        "mov r9d, 2", "lea r10, [rdx - 80]", "mov [r10 + r9 * 8 + 64], ecx";
    FormImmediate8, c"MOV m8, imm8", 1, false: "mov byte ptr [rdx], 0xA5";
    FormImmediate16, c"MOV m16, imm16", 1, false: "mov word ptr [rdx], 0x8001";
    FormImmediate32, c"MOV m32, imm32", 1, false: "mov dword ptr [rdx], 0x80000001";
    FormImmediate64, c"MOV m64, imm32", 1, false: "mov qword ptr [rdx], -2";
    FormAdd, c"ADD m64, r64", 1, false: "add [rdx], rcx";
    FormSub, c"SUB m8, imm8", 1, false: "sub byte ptr [rdx], 0x7F";
    FormIncrement, c"INC m32", 1, false: "inc dword ptr [rdx]";
    FormNot, c"NOT m16", 1, false: "not word ptr [rdx]";
    FormNegate, c"NEG m64", 1, false: "neg qword ptr [rdx]";
    FormShift, c"SHL m32, 3", 1, false: "shl dword ptr [rdx], 3";
    FormSet, c"SETS m8", 1, false: "sets byte ptr [rdx]";
    FormBitTest, c"BTS m32, 5", 1, false: "bts dword ptr [rdx], 5";
    FormExchange, c"XCHG m64, r64", 1, false: "xchg [rdx], rcx";
    FormExchangeAdd, c"LOCK XADD m32, r32", 1, false: "lock xadd [rdx], ecx";
    FormCompareFail, c"LOCK CMPXCHG m32 that fails", 1, false: "lock cmpxchg [rdx], ecx";
    FormCompare, c"LOCK CMPXCHG m32 that succeeds", 1, false:
        "mov eax, [rdx]", "lock cmpxchg [rdx], ecx";
    FormLockedIncrement, c"LOCK INC m64", 1, false: "lock inc qword ptr [rdx]";
    FormNonTemporal, c"MOVNTI m32, r32", 1, false: "movnti [rdx], ecx", "sfence";
    FormVector, c"MOVUPS m128, xmm", 1, false: "movq xmm0, rcx", "movups [rdx], xmm0";
    FormVectorAligned, c"MOVAPS m128, xmm", 16, false: "movq xmm1, rcx", "movaps [rdx], xmm1";
    FormStoreString, c"STOSQ", 1, false: "mov rax, rcx", "stosq";
    FormRepeatStore, c"REP STOSB", 1, false: "mov eax, ecx", "mov ecx, 37", "rep stosb";
    FormRepeatBackwards, c"REP STOSB downwards", 1, false:
        "lea rdi, [rdx + 9]", "mov ecx, 10", "std", "rep stosb", "cld", "cmp ecx, 7";
    FormRepeatMove, c"REP MOVSB", 1, false:
        "lea rsi, [rip + FormsBase + 4000]", "mov ecx, 33", "rep movsb", "mov rsi, r8";
    FormRepeatMoveQuads, c"REP MOVSQ", 1, false:
        "lea rsi, [rip + FormsBase + 4000]", "mov ecx, 5", "rep movsq", "mov rsi, r8";
    FormPush, c"PUSH onto it", 1, false: "lea rsp, [rdx + 8]", "push rcx", "mov rsp, rbx";
    FormPushMemory, c"PUSHFQ onto it", 1, false:
        "lea rsp, [rdx + 8]", "pushfq", "mov rsp, rbx";
    FormCall, c"CALL onto it", 1, false:
        "lea rsp, [rdx + 8]", "call 2f", "2:", "mov rsp, rbx";
    FormPopMemory, c"POP m64", 1, false: "push rcx", "pop qword ptr [rdx]";
    FormFloat, c"FXSAVE64", 16, true: "movq xmm0, rcx", "fxsave64 [rdx]";
    FormExtended, c"XSAVE", 64, true:
        "movq xmm2, rcx", "mov r9, rdx", "xor edx, edx", "mov eax, 3", "xsave [r9]", "mov rdx, r9";
    FormControl, c"STMXCSR", 1, false: "stmxcsr [rdx]";
    FormTable, c"SGDT", 1, false: "sgdt [rdx]";
    FormCounter, c"CMPXCHG16B", 16, false:
        "mov r10, rbx", "mov r11, rcx", "mov r9, rdx", "mov rax, [r9]", "mov rdx, [r9 + 8]",
        "mov rbx, r11", "mov rcx, 5", "lock cmpxchg16b [r9]", "mov rdx, r9", "mov rbx, r10";
}
