//! Sweeps: every MSR, CPUID leaf, control-register bit and XCR0 pattern, one
//! line for each that exists.
//!
//! A line says the outcome, not the value, where the value is a clock. Reads are
//! tried twice to find those.

use crate::instr::{self, Operands};
use crate::line;
use crate::text::Text;
use crate::trap::{Outcome, attempt};

/// Registers in which a fault must leave EDX:EAX as they were.
const PATTERN: Operands = Operands {
    rax: 0x1122_3344_5566_7788,
    rcx: 0,
    rdx: 0x99AA_BBCC_DDEE_FF01,
    rbx: 0,
    rsi: 0,
    rdi: 0,
    flags: 0,
};

/// IA32_BIOS_UPDT_TRIG starts a microcode update; IA32_TIME_STAMP_COUNTER is the
/// machine's clock.
const NOT_WRITTEN: [u32; 2] = [0x79, 0x10];

fn read(register: u32) -> Outcome {
    attempt(
        instr::rdmsr,
        &Operands {
            rcx: register.into(),
            ..PATTERN
        },
    )
}

fn write(register: u32, value: u64) -> Outcome {
    attempt(
        instr::wrmsr,
        &Operands {
            rax: value & 0xFFFF_FFFF,
            rcx: register.into(),
            rdx: value >> 32,
            ..Operands::default()
        },
    )
}

fn value(registers: &Operands) -> u64 {
    registers.rdx << 32 | registers.rax & 0xFFFF_FFFF
}

/// `count` MSRs from `first`: read, and written with what was read, or with 0
/// where nothing can be read.
pub(crate) fn msrs(text: &mut Text<'_>, first: u32, count: u32) {
    for register in (first..).take(count as usize) {
        let outcome = read(register);
        let writes = !NOT_WRITTEN.contains(&register);
        match outcome {
            Outcome::Done(registers) => {
                let found = value(&registers);
                let again = match read(register) {
                    Outcome::Done(registers) => value(&registers),
                    Outcome::Fault(..) => !found,
                };
                let high = registers.rax >> 32 | registers.rdx >> 32;
                if again == found {
                    line!(text, "msr {register:#x}: {found:#x} high {high:#x}");
                } else {
                    line!(text, "msr {register:#x}: varies high {high:#x}");
                }
                if writes {
                    let outcome = write(register, again);
                    line!(text, "msr {register:#x} same again: {outcome}");
                }
            }
            Outcome::Fault(trap, _) => {
                let kept = trap.rax == PATTERN.rax && trap.rdx == PATTERN.rdx;
                if trap.vector != 13 || trap.error != 0 || !kept {
                    line!(text, "msr {register:#x}: {outcome}, registers kept: {kept}");
                }
                if writes {
                    let outcome = write(register, 0);
                    if outcome.done() {
                        line!(text, "msr {register:#x} write-only");
                    }
                }
            }
        }
    }
    line!(text, "{count} MSRs from {first:#x}");
}

/// Boundaries of the bitmap and pseudo-random numbers outside of it.
pub(crate) fn scattered_msrs(text: &mut Text<'_>, count: u32) {
    for register in [
        0x1FFF_u32,
        0x2000,
        0x2001,
        0x3FFF_FFFF,
        0x4000_0000,
        0x4000_1FFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xBFFF_FFFF,
        0xC000_0000,
        0xC000_1FFF,
        0xC000_2000,
        0xC001_0000,
        0xC001_0114,
        0xC001_1FFF,
        0xFFFF_FFFF,
        0x1234_5678,
    ] {
        msrs(text, register, 1);
    }
    // Numbers as `Xorshift` makes them (Marsaglia, 2003).
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut there = 0_u32;
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let register = (state >> 16 & 0xFFFF_FFFF) as u32;
        if register < 0x2000 || (0xC000_0000..0xC000_2000).contains(&register) {
            continue;
        }
        match read(register) {
            Outcome::Done(registers) => {
                there += 1;
                line!(text, "msr {register:#x}: {:#x}", value(&registers));
            }
            outcome @ Outcome::Fault(trap, _) => {
                let kept = trap.rax == PATTERN.rax && trap.rdx == PATTERN.rdx;
                if trap.vector != 13 || trap.error != 0 || !kept {
                    line!(text, "msr {register:#x}: {outcome}, registers kept: {kept}");
                }
                let outcome = write(register, 0);
                if outcome.done() {
                    line!(text, "msr {register:#x} can be written");
                }
            }
        }
    }
    line!(text, "{there} of {count} scattered MSRs are there");
}

fn cpuid(leaf: u32, subleaf: u32) -> Option<Operands> {
    let operands = Operands {
        rax: leaf.into(),
        rcx: subleaf.into(),
        ..Operands::default()
    };
    match attempt(instr::cpuid, &operands) {
        Outcome::Done(registers) => Some(Operands {
            flags: 0,
            ..registers
        }),
        Outcome::Fault(..) => None,
    }
}

/// Every leaf from `first` to some behind the greatest, with `subleaves` each;
/// a line where a subleaf differs from the one before.
pub(crate) fn cpuid_leaves(text: &mut Text<'_>, first: u32, subleaves: u32) {
    let greatest = cpuid(first, 0)
        .and_then(|found| u32::try_from(found.rax).ok())
        .and_then(|greatest| greatest.checked_sub(first))
        .unwrap_or(0);
    for leaf in first..=first + greatest.min(0xFF) + 4 {
        let mut before = None;
        for subleaf in (0..subleaves).chain([u32::MAX]) {
            let found = cpuid(leaf, subleaf);
            if found == before {
                continue;
            }
            before = found;
            if let Some(f) = found {
                line!(
                    text,
                    "cpuid {leaf:#x}.{subleaf:#x}: {:#x} {:#x} {:#x} {:#x}",
                    f.rax,
                    f.rbx,
                    f.rcx,
                    f.rdx
                );
            } else {
                line!(text, "cpuid {leaf:#x}.{subleaf:#x}: fault");
            }
        }
    }
}

/// Every bit, and every pair of bits, of CR0 (`register` 0) or CR4, flipped for
/// two instructions.
pub(crate) fn control_register(text: &mut Text<'_>, register: u64) {
    let (routine, now): (instr::Routine, u64) = if register == 0 {
        (instr::flip_cr0, instr::cr0())
    } else {
        (instr::flip_cr4, instr::cr4())
    };
    line!(text, "cr{register} is {now:#x}");
    let flip = |text: &mut Text<'_>, bits: u64| {
        let operands = Operands {
            rax: now ^ bits,
            ..Operands::default()
        };
        match attempt(routine, &operands) {
            Outcome::Done(seen) => line!(
                text,
                "cr{register} ^ {bits:#x}: reads {:#x}, was {:#x}",
                seen.rcx,
                seen.rdx
            ),
            outcome @ Outcome::Fault(..) => line!(text, "cr{register} ^ {bits:#x}: {outcome}"),
        }
        let after = if register == 0 {
            instr::cr0()
        } else {
            instr::cr4()
        };
        if after != now {
            line!(text, "cr{register} ^ {bits:#x}: left as {after:#x}");
        }
    };
    for bit in 0..64 {
        flip(text, 1 << bit);
    }
    for high in 1..32 {
        for low in 0..high {
            flip(text, 1 << high | 1 << low);
        }
    }
}

/// XCR0 with every pattern of its low `bits`, each high bit alone, and other
/// registers than XCR0.
pub(crate) fn extended_control(text: &mut Text<'_>, bits: u32) {
    let read = || match attempt(instr::xgetbv, &Operands::default()) {
        Outcome::Done(registers) => value(&registers),
        Outcome::Fault(..) => u64::MAX,
    };
    let now = read();
    line!(text, "xcr0 is {now:#x}");
    let try_value = |text: &mut Text<'_>, register: u64, wanted: u64| {
        let operands = Operands {
            rax: wanted & 0xFFFF_FFFF,
            rcx: register,
            rdx: wanted >> 32,
            ..Operands::default()
        };
        let outcome = attempt(instr::xsetbv, &operands);
        let after = read();
        line!(
            text,
            "xcr{register} <- {wanted:#x}: {outcome}, reads {after:#x}"
        );
        let back = Operands {
            rax: now & 0xFFFF_FFFF,
            rdx: now >> 32,
            ..Operands::default()
        };
        if !attempt(instr::xsetbv, &back).done() {
            line!(text, "xcr0 cannot be put back");
        }
    };
    for wanted in 0..1 << bits {
        try_value(text, 0, wanted);
    }
    for bit in bits..64 {
        try_value(text, 0, now | 1 << bit);
    }
    for register in [1, 2, 5, 0xFFFF_FFFF] {
        try_value(text, register, now);
    }
}
