//! Single instructions on which hypervisors of this kind have come to grief, each
//! with what the bare processor answers.

use core::cell::UnsafeCell;
use core::fmt::Display;

use wdk_standin::wdk_sys::{
    _MEMORY_CACHING_TYPE, PHYSICAL_ADDRESS,
    ntddk::{MmMapIoSpace, MmUnmapIoSpace},
};

use crate::harness::{CodePages, physical_address};
use crate::instr::{self, Operands, Routine};
use crate::line;
use crate::tables::{Tables, executable_by_all};
use crate::text::Text;
use crate::trap::{Outcome, attempt, attempt_in_user_mode};

/// Aligned memory for instructions that store or load a block.
#[repr(C, align(4096))]
struct Block(UnsafeCell<[u64; 512]>);
// SAFETY: only instruction routines touch it, one at a time.
unsafe impl Sync for Block {}

static BLOCK: Block = Block(UnsafeCell::new([0; 512]));

fn block() -> u64 {
    BLOCK.0.get() as u64
}

fn msr(register: u32, value: u64) -> Operands {
    Operands {
        rax: value & 0xFFFF_FFFF,
        rcx: register.into(),
        rdx: value >> 32,
        ..Operands::default()
    }
}

fn read_msr(register: u32) -> Option<u64> {
    match attempt(instr::rdmsr, &msr(register, 0)) {
        Outcome::Done(found) => Some(found.rdx << 32 | found.rax & 0xFFFF_FFFF),
        Outcome::Fault(..) => None,
    }
}

/// The outcome alone.
fn row(text: &mut Text<'_>, name: impl Display, routine: Routine, operands: &Operands) -> Outcome {
    let outcome = attempt(routine, operands);
    line!(text, "{name}: {outcome}");
    outcome
}

/// The outcome and every register.
fn row_with_registers(
    text: &mut Text<'_>,
    name: impl Display,
    routine: Routine,
    operands: &Operands,
) {
    match attempt(routine, operands) {
        Outcome::Done(r) => line!(
            text,
            "{name}: rax {:#x} rcx {:#x} rdx {:#x} rbx {:#x} flags {:#x}",
            r.rax,
            r.rcx,
            r.rdx,
            r.rbx,
            r.flags
        ),
        outcome @ Outcome::Fault(..) => line!(text, "{name}: {outcome}"),
    }
}

/// Every row.
pub(crate) fn all(text: &mut Text<'_>) {
    msrs(text);
    control_registers(text);
    extended_control(text);
    unconditional(text);
    virtualization(text);
    conditional(text);
    user_mode(text);
    memory(text);
}

/// VMCALL and its like exit at any privilege level.
fn user_mode(text: &mut Text<'_>) {
    let Some(mut code) = CodePages::allocate(1) else {
        line!(text, "no memory");
        return;
    };
    for (name, instruction) in [
        ("VMCALL", [0x0F, 0x01, 0xC1]),
        ("VMMCALL", [0x0F, 0x01, 0xD9]),
        ("VMRUN", [0x0F, 0x01, 0xD8]),
        ("STGI", [0x0F, 0x01, 0xDC]),
        ("VMXOFF", [0x0F, 0x01, 0xC4]),
        ("VMLAUNCH", [0x0F, 0x01, 0xC2]),
        ("XSETBV", [0x0F, 0x01, 0xD1]),
        ("VMFUNC", [0x0F, 0x01, 0xD4]),
        ("INVD", [0x0F, 0x08, 0x90]),
        ("RDMSR", [0x0F, 0x32, 0x90]),
        ("GETSEC", [0x0F, 0x37, 0x90]),
        // CPUID, then UD2: it exits and goes on.
        ("CPUID", [0x0F, 0xA2, 0x90]),
    ] {
        if !(code.write(0, &instruction) && code.write(3, &[0x0F, 0x0B])) {
            return;
        }
        let frame = physical_address(code.address());
        let entry = |_| executable_by_all(frame);
        if let Some(tables) = Tables::with(code.address(), entry) {
            let outcome = attempt_in_user_mode(&tables, code.address());
            line!(text, "{name} in ring 3: {outcome}");
        }
    }
}

fn msrs(text: &mut Text<'_>) {
    for register in [0x1234_5678, 0x4000_0010, 0x4000_0000, 0x1FFE, 0xC000_1FFE] {
        let read = format_args!("RDMSR {register:#x}");
        row(text, read, instr::rdmsr, &msr(register, 0x55));
        let write = format_args!("WRMSR {register:#x}");
        row(text, write, instr::wrmsr, &msr(register, 0x55));
    }
    let efer = read_msr(0xC000_0080).unwrap_or_default();
    for bit in [1_u64, 9, 12, 16, 31, 32, 63] {
        let name = format_args!("EFER with bit {bit}");
        let outcome = row(text, name, instr::wrmsr, &msr(0xC000_0080, efer | 1 << bit));
        if outcome.done() {
            let now = read_msr(0xC000_0080);
            line!(text, "EFER with bit {bit} reads {now:?}");
        }
        row(
            text,
            "EFER as before",
            instr::wrmsr,
            &msr(0xC000_0080, efer),
        );
    }
    row(
        text,
        "EFER.LME cleared",
        instr::wrmsr,
        &msr(0xC000_0080, efer & !0x100),
    );
    for register in [
        0xC000_0082_u32,
        0xC000_0083,
        0xC000_0100,
        0xC000_0102,
        0x175,
        0x176,
    ] {
        let name = format_args!("MSR {register:#x} not canonical");
        row(
            text,
            name,
            instr::wrmsr,
            &msr(register, 0x1234_5678_9ABC_DEF0),
        );
    }
    for (name, register, value) in [
        ("PAT reserved type", 0x277_u32, 0x0207_0406_0007_0406_u64),
        ("MTRR default type reserved", 0x2FF, 0xFFFF),
        ("MTRR base reserved", 0x200, 0xFFFF_FFFF_FFFF_FFFF),
        ("MTRR fixed reserved type", 0x250, 0x0303_0303_0303_0303),
        ("APIC base reserved", 0x1B, 0xFFFF_FFFF_FFFF_FFFF),
        ("DEBUGCTL reserved", 0x1D9, 0xFFFF_FFFF),
        ("FEATURE_CONTROL", 0x3A, 5),
        ("VMX_BASIC", 0x480, 0),
    ] {
        row(text, name, instr::wrmsr, &msr(register, value));
    }
    for register in 0x480..=0x493_u32 {
        line!(text, "VMX MSR {register:#x}: {:?}", read_msr(register));
    }
    line!(text, "FEATURE_CONTROL: {:?}", read_msr(0x3A));
    row_with_registers(
        text,
        "CPUID leaf 1",
        instr::cpuid,
        &Operands {
            rax: 1,
            ..Operands::default()
        },
    );
}

fn control_registers(text: &mut Text<'_>) {
    let (cr0, cr4) = (instr::cr0(), instr::cr4());
    let with = |value| Operands {
        rax: value,
        ..Operands::default()
    };
    row_with_registers(
        text,
        "CR4 without VMXE",
        instr::flip_cr4,
        &with(cr4 & !(1 << 13)),
    );
    row_with_registers(text, "CR4 with VMXE", instr::flip_cr4, &with(cr4 | 1 << 13));
    row_with_registers(text, "CR0 without NE", instr::flip_cr0, &with(cr0 & !0x20));
    row_with_registers(text, "CR0 with CD", instr::flip_cr0, &with(cr0 | 1 << 30));
    row_with_registers(text, "CR0 with TS", instr::flip_cr0, &with(cr0 | 8));
    row(text, "CLTS", instr::clts, &Operands::default());
    row(text, "LMSW same", instr::lmsw, &with(cr0 & 0xF));
    row(text, "LMSW without PE", instr::lmsw, &with(cr0 & 0xE));
    row_with_registers(text, "SMSW", instr::smsw, &Operands::default());
    row(text, "CR3 same", instr::write_cr3, &with(instr::cr3()));
    row(text, "CR3 reserved", instr::write_cr3, &with(1 << 62));
    row_with_registers(text, "CR8 15", instr::write_cr8, &with(15));
    row_with_registers(text, "CR8 16", instr::write_cr8, &with(16));
    row_with_registers(text, "DR7", instr::write_dr7, &with(0x700));
    row_with_registers(text, "DR7 high", instr::write_dr7, &with(1 << 32));
    row_with_registers(text, "DR6", instr::write_dr6, &with(0xFFFF_0FF0));
}

fn extended_control(text: &mut Text<'_>) {
    let now = match attempt(instr::xgetbv, &Operands::default()) {
        Outcome::Done(found) => found,
        Outcome::Fault(..) => return,
    };
    let with = |rcx, value: u64| Operands {
        rax: value & 0xFFFF_FFFF,
        rcx,
        rdx: value >> 32,
        ..Operands::default()
    };
    row(text, "XCR0 <- 0", instr::xsetbv, &with(0, 0));
    row(text, "XCR0 <- bit 63", instr::xsetbv, &with(0, 1 << 63));
    row(text, "XCR5", instr::xsetbv, &with(5, 7));
    row(text, "XCR0 <- 7", instr::xsetbv, &with(0, 7));
    row_with_registers(text, "XGETBV", instr::xgetbv, &Operands::default());
    row_with_registers(text, "XGETBV 1", instr::xgetbv, &with(1, 0));
    row_with_registers(text, "XGETBV 5", instr::xgetbv, &with(5, 0));
    let back = Operands { rcx: 0, ..now };
    row(text, "XCR0 as before", instr::xsetbv, &back);
}

/// What exits whether the hypervisor wants it or not.
fn unconditional(text: &mut Text<'_>) {
    let none = Operands::default();
    row(text, "WBINVD", instr::wbinvd, &none);
    // Caches are empty now: nothing is lost.
    row(text, "INVD", instr::invd, &none);
    row(text, "GETSEC", instr::getsec, &none);
    row(text, "RSM", instr::rsm, &none);
    for leaf in [0x4000_0000_u64, 0x8000_0000, 0xFFFF_FFFF] {
        let leaf = Operands { rax: leaf, ..none };
        row_with_registers(text, "CPUID of no leaf", instr::cpuid, &leaf);
    }
}

/// VMX and SVM instructions where neither is on.
pub(crate) fn virtualization(text: &mut Text<'_>) {
    let at = Operands {
        rdx: block(),
        ..Operands::default()
    };
    for (name, routine) in [
        ("VMCALL", instr::vmcall as Routine),
        ("VMXON", instr::vmxon),
        ("VMXOFF", instr::vmxoff),
        ("VMCLEAR", instr::vmclear),
        ("VMPTRLD", instr::vmptrld),
        ("VMPTRST", instr::vmptrst),
        ("VMREAD", instr::vmread),
        ("VMWRITE", instr::vmwrite),
        ("VMLAUNCH", instr::vmlaunch),
        ("VMRESUME", instr::vmresume),
        ("VMFUNC", instr::vmfunc),
        ("INVEPT", instr::invept),
        ("INVVPID", instr::invvpid),
        ("VMRUN", instr::vmrun),
        ("VMMCALL", instr::vmmcall),
        ("VMLOAD", instr::vmload),
        ("VMSAVE", instr::vmsave),
        ("STGI", instr::stgi),
        ("CLGI", instr::clgi),
        ("SKINIT", instr::skinit),
        ("INVLPGA", instr::invlpga),
    ] {
        row(text, name, routine, &at);
    }
    // The operand is to hold address 1, which is no VMXON region: VMfailInvalid.
    let one = Operands { rax: 1, ..at };
    row(text, "address 1", instr::store, &one);
    let enabled = Operands {
        rax: instr::cr4() | 1 << 13,
        rdx: block(),
        ..Operands::default()
    };
    row_with_registers(text, "VMXON with CR4.VMXE", instr::vmxon_enabled, &enabled);
}

/// What a control decides: each as without us.
fn conditional(text: &mut Text<'_>) {
    let none = Operands::default();
    let at = Operands {
        rdx: block(),
        ..none
    };
    row(text, "RDTSC", instr::rdtsc, &none);
    row(text, "RDTSCP", instr::rdtscp, &none);
    row(text, "RDPID", instr::rdpid, &none);
    row(text, "RDPMC", instr::rdpmc, &none);
    row(
        text,
        "RDPMC 0x12345",
        instr::rdpmc,
        &Operands {
            rcx: 0x12345,
            ..none
        },
    );
    row(text, "RDRAND", instr::rdrand, &none);
    row(text, "RDSEED", instr::rdseed, &none);
    row(text, "PAUSE", instr::pause, &none);
    row(
        text,
        "MONITOR",
        instr::monitor,
        &Operands {
            rax: at.rdx,
            ..none
        },
    );
    row(
        text,
        "UMONITOR",
        instr::umonitor,
        &Operands {
            rdx: at.rdx,
            ..none
        },
    );
    row(text, "TPAUSE", instr::tpause, &none);
    row(
        text,
        "INVLPG",
        instr::invlpg,
        &Operands {
            rax: at.rdx,
            ..none
        },
    );
    row(
        text,
        "INVPCID 2",
        instr::invpcid,
        &Operands { rax: 2, ..at },
    );
    row(
        text,
        "INVPCID 4",
        instr::invpcid,
        &Operands { rax: 4, ..at },
    );
    row(text, "ENCLS", instr::encls, &none);
    row(text, "PCONFIG", instr::pconfig, &none);
    let area = Operands {
        rdi: block(),
        ..none
    };
    row(text, "XSAVES of nothing", instr::xsaves, &area);
    row(text, "XRSTORS of nothing", instr::xrstors, &area);
    row(text, "UD2", instr::ud2, &none);
    row(text, "INT3", instr::int3, &none);
    row(text, "ICEBP", instr::icebp, &none);
    row(text, "INT 16", instr::int_n, &none);
    row(
        text,
        "read of a non-canonical address",
        instr::load,
        &Operands {
            rdx: 0x1234_5678_9ABC_DEF0,
            ..none
        },
    );
    row(
        text,
        "read of address 8",
        instr::load,
        &Operands { rdx: 8, ..none },
    );
    row(
        text,
        "write to address 8",
        instr::store,
        &Operands { rdx: 8, ..none },
    );
}

/// Physical addresses far above RAM, at the edge of the physical width, and
/// beyond it.
fn memory(text: &mut Text<'_>) {
    const GIB: u64 = 1 << 30;
    for (name, physical) in [
        ("512 GiB", 512 * GIB),
        ("600 GiB", 600 * GIB),
        ("1 TiB - 4 KiB", 1024 * GIB - 4096),
        ("1 TiB", 1024 * GIB),
        ("4 GiB - 1 MiB", 4 * GIB - (1 << 20)),
        ("3 GiB + 64 KiB", 3 * GIB + 0x1_0000),
        ("640 KiB", 0xA_0000),
    ] {
        let place = name;
        let mut address = PHYSICAL_ADDRESS::default();
        address.QuadPart = physical.cast_signed();
        // SAFETY: the range is nobody's memory, or device memory without side effects.
        let mapped = unsafe { MmMapIoSpace(address, 4096, _MEMORY_CACHING_TYPE::MmNonCached) };
        if mapped.is_null() {
            line!(text, "{place} is not mapped");
            continue;
        }
        let at = Operands {
            rax: 0x5A5A,
            rdx: mapped as u64,
            ..Operands::default()
        };
        for (name, routine) in [("read", instr::load as Routine), ("write", instr::store)] {
            match attempt(routine, &at) {
                Outcome::Done(found) => line!(text, "{name} {place}: {:#x}", found.rax),
                // The address differs between runs; the offset in the page does not.
                Outcome::Fault(trap, offset) => line!(
                    text,
                    "{name} {place}: vector {} error {:#x} at +{offset:#x}, address right: {}",
                    trap.vector,
                    trap.error,
                    trap.cr2 == at.rdx
                ),
            }
        }
        // SAFETY: mapped above.
        unsafe { MmUnmapIoSpace(mapped, 4096) };
    }
}
