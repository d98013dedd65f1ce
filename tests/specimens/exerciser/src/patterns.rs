//! Patterns in registers that no exit may touch: vector registers, MXCSR, x87,
//! debug registers, bases of FS and GS.
//!
//! A run loads the patterns with interrupts off, causes exits, and stores what is
//! there then. Exits are CPUID, and pages that turn between data and code, because
//! the hypervisor's longest way (judging a page) is the likeliest to use a vector
//! register. Everything is put back before interrupts are on.

use core::arch::naked_asm;
use core::cell::UnsafeCell;

use crate::harness::CodePages;
use crate::instr;
use crate::line;
use crate::text::Text;

const VECTORS: usize = 16;
const BYTES: usize = 32;

#[repr(C, align(64))]
struct Space {
    patterns: [[u8; BYTES]; VECTORS],
    found: [[u8; BYTES]; VECTORS],
    /// FXSAVE's image of the caller's state.
    saved: [u8; 512],
    /// FXSAVE's images before and after the exits.
    before: [u8; 512],
    after: [u8; 512],
}

struct Cell(UnsafeCell<Space>);
// SAFETY: one command at a time.
unsafe impl Sync for Cell {}

static SPACE: Cell = Cell(UnsafeCell::new(Space {
    patterns: [[0; BYTES]; VECTORS],
    found: [[0; BYTES]; VECTORS],
    saved: [0; 512],
    before: [0; 512],
    after: [0; 512],
}));

/// Loads the patterns, causes `turns` exits, stores the registers. `page` is a
/// RET in executable pool, or null for CPUID alone; `wide` says that there is AVX.
///
/// # Safety
/// Interrupts are off.
#[unsafe(naked)]
unsafe extern "C" fn hold(space: *mut Space, turns: u64, page: *mut u8, wide: u64) {
    naked_asm!(
        "push rbx",
        "push rsi",
        "push rdi",
        "push r12",
        "push r13",
        "sub rsp, 32",
        "mov rsi, rcx",
        "mov rdi, rdx",
        "mov r12, r8",
        "mov r13, r9",
        "fxsave64 [rsi + 1024]",
        "fninit",
        "fldpi",
        "fldl2e",
        "fldln2",
        "mov dword ptr [rsp], 0x7F80",
        "ldmxcsr [rsp]",
        "test r13, r13",
        "jz 2f",
        "vmovups ymm0, [rsi]",
        "vmovups ymm1, [rsi + 32]",
        "vmovups ymm2, [rsi + 64]",
        "vmovups ymm3, [rsi + 96]",
        "vmovups ymm4, [rsi + 128]",
        "vmovups ymm5, [rsi + 160]",
        "vmovups ymm6, [rsi + 192]",
        "vmovups ymm7, [rsi + 224]",
        "vmovups ymm8, [rsi + 256]",
        "vmovups ymm9, [rsi + 288]",
        "vmovups ymm10, [rsi + 320]",
        "vmovups ymm11, [rsi + 352]",
        "vmovups ymm12, [rsi + 384]",
        "vmovups ymm13, [rsi + 416]",
        "vmovups ymm14, [rsi + 448]",
        "vmovups ymm15, [rsi + 480]",
        "2:",
        "fxsave64 [rsi + 1536]",
        "3:",
        "xor eax, eax",
        "xor ecx, ecx",
        "cpuid",
        "test r12, r12",
        "jz 4f",
        // Data, then code.
        "mov byte ptr [r12 + 64], 0x5A",
        "call r12",
        "4:",
        "dec rdi",
        "jnz 3b",
        "fxsave64 [rsi + 2048]",
        "test r13, r13",
        "jz 5f",
        "vmovups [rsi + 512], ymm0",
        "vmovups [rsi + 544], ymm1",
        "vmovups [rsi + 576], ymm2",
        "vmovups [rsi + 608], ymm3",
        "vmovups [rsi + 640], ymm4",
        "vmovups [rsi + 672], ymm5",
        "vmovups [rsi + 704], ymm6",
        "vmovups [rsi + 736], ymm7",
        "vmovups [rsi + 768], ymm8",
        "vmovups [rsi + 800], ymm9",
        "vmovups [rsi + 832], ymm10",
        "vmovups [rsi + 864], ymm11",
        "vmovups [rsi + 896], ymm12",
        "vmovups [rsi + 928], ymm13",
        "vmovups [rsi + 960], ymm14",
        "vmovups [rsi + 992], ymm15",
        "vzeroupper",
        "5:",
        "fxrstor64 [rsi + 1024]",
        "add rsp, 32",
        "pop r13",
        "pop r12",
        "pop rdi",
        "pop rsi",
        "pop rbx",
        "ret",
    )
}

const _: () = assert!(core::mem::offset_of!(Space, saved) == 1024);
const _: () = assert!(core::mem::offset_of!(Space, before) == 1536);
const _: () = assert!(core::mem::offset_of!(Space, after) == 2048);

const FS_BASE: u32 = 0xC000_0100;
const GS_BASE: u32 = 0xC000_0101;
const KERNEL_GS_BASE: u32 = 0xC000_0102;

/// What is held beside the vector registers.
type Held = [u64; 9];

fn held() -> Held {
    let [dr0, dr1, dr2, dr3] = instr::dr0_to_3();
    // SAFETY: the three registers exist.
    let fs = unsafe { instr::read_msr(FS_BASE) };
    // SAFETY: as above.
    let gs = unsafe { instr::read_msr(GS_BASE) };
    // SAFETY: as above.
    let kernel_gs = unsafe { instr::read_msr(KERNEL_GS_BASE) };
    [
        dr0,
        dr1,
        dr2,
        dr3,
        instr::dr6(),
        instr::dr7(),
        fs,
        gs,
        kernel_gs,
    ]
}

fn put(held: &Held) {
    instr::set_dr0_to_3([held[0], held[1], held[2], held[3]]);
    instr::set_dr6(held[4]);
    instr::set_dr7(held[5]);
    // SAFETY: interrupts are off, and ring 0 does not use FS here.
    unsafe { instr::write_msr(FS_BASE, held[6]) };
    // SAFETY: interrupts are off: nobody swaps GS.
    unsafe { instr::write_msr(KERNEL_GS_BASE, held[8]) };
}

/// One run; what differs.
fn once(seed: u64, turns: u64, page: Option<&CodePages>, text: &mut Text<'_>) -> u64 {
    let space = SPACE.0.get();
    // SAFETY: one command at a time.
    let values = unsafe { &mut *space };
    let mut state = seed | 1;
    for byte in values.patterns.iter_mut().flatten() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[0];
    }
    let wide = instr::has_avx();
    let on = instr::interrupts_off();
    let before = held();
    let mut pattern = before;
    // Breakpoints that are not enabled, so nothing comes of them.
    pattern[0] = seed;
    pattern[1] = !seed & 0x0000_7FFF_FFFF_FFFF;
    pattern[2] = seed.rotate_left(7) & 0x0000_7FFF_FFFF_FFFF;
    pattern[3] = seed ^ 0x5A5A;
    pattern[4] = 0xFFFF_0FF0 | (seed & 0xF);
    pattern[5] = 0x0000_0400 | (seed & 0xFFFF) << 16 & 0xDDDD_0000;
    pattern[6] = seed & 0x0000_7FFF_FFFF_F000;
    pattern[8] = !seed & 0x0000_7FFF_FFFF_F000;
    put(&pattern);
    let pattern = held();
    let at = page.map_or(core::ptr::null_mut(), |page| page.address() as *mut u8);
    // SAFETY: interrupts are off; the page holds a RET.
    unsafe { hold(space, turns, at, wide.into()) };
    let after = held();
    put(&before);
    if on {
        // SAFETY: they were on before.
        unsafe { instr::interrupts_on() };
    }
    let mut wrong = 0;
    if after != pattern {
        wrong += 1;
        line!(
            text,
            "debug registers or bases: {pattern:x?}, then {after:x?}"
        );
    }
    // SAFETY: written by `hold`.
    let values = unsafe { &*space };
    if wide && values.patterns != values.found {
        wrong += 1;
        line!(text, "vector registers differ");
    }
    if values.before[..464] != values.after[..464] {
        wrong += 1;
        line!(text, "FXSAVE's images differ");
    }
    wrong
}

/// `exits` exits in all, in runs of 1,000.
pub(crate) fn all(text: &mut Text<'_>, exits: u64) {
    const RUN: u64 = 1000;
    let Some(mut page) = CodePages::allocate(1) else {
        line!(text, "no memory");
        return;
    };
    if !page.write(0, &[0xC3]) {
        return;
    }
    let mut wrong = 0;
    for run in 0..exits.div_ceil(RUN).max(1) {
        let seed = (run + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) & 0x0000_7FFF_FFFF_FFFF;
        // Every fourth run turns the page as well.
        let page = run.is_multiple_of(4).then_some(&page);
        wrong += once(seed, RUN, page, text);
        if wrong > 8 {
            break;
        }
    }
    line!(text, "{wrong} runs with a register that had changed");
}
