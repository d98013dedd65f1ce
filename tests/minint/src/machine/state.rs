//! The architectural state of every processor, for a comparison before and after.
//!
//! Taken at IPI_LEVEL on all processors at once by `KeIpiGenericCall`: no
//! allocation, no lock; each writes its own row.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use wdk_standin::wdk_sys::ULONG_PTR;

use crate::ex::nt;
use crate::hal::instr;

const FIELDS: usize = 128;
const CPUS: usize = 64;

static ROWS: [[AtomicU64; FIELDS]; CPUS] = [const { [const { AtomicU64::new(0) }; FIELDS] }; CPUS];

const VARIABLE_MTRRS: [&str; 32] = [
    "mtrr_base0",
    "mtrr_mask0",
    "mtrr_base1",
    "mtrr_mask1",
    "mtrr_base2",
    "mtrr_mask2",
    "mtrr_base3",
    "mtrr_mask3",
    "mtrr_base4",
    "mtrr_mask4",
    "mtrr_base5",
    "mtrr_mask5",
    "mtrr_base6",
    "mtrr_mask6",
    "mtrr_base7",
    "mtrr_mask7",
    "mtrr_base8",
    "mtrr_mask8",
    "mtrr_base9",
    "mtrr_mask9",
    "mtrr_base10",
    "mtrr_mask10",
    "mtrr_base11",
    "mtrr_mask11",
    "mtrr_base12",
    "mtrr_mask12",
    "mtrr_base13",
    "mtrr_mask13",
    "mtrr_base14",
    "mtrr_mask14",
    "mtrr_base15",
    "mtrr_mask15",
];

const FIXED_MTRRS: [(&str, u32); 11] = [
    ("mtrr_fix64k_00000", 0x250),
    ("mtrr_fix16k_80000", 0x258),
    ("mtrr_fix16k_a0000", 0x259),
    ("mtrr_fix4k_c0000", 0x268),
    ("mtrr_fix4k_c8000", 0x269),
    ("mtrr_fix4k_d0000", 0x26A),
    ("mtrr_fix4k_d8000", 0x26B),
    ("mtrr_fix4k_e0000", 0x26C),
    ("mtrr_fix4k_e8000", 0x26D),
    ("mtrr_fix4k_f0000", 0x26E),
    ("mtrr_fix4k_f8000", 0x26F),
];

fn msr(register: u32) -> u64 {
    // SAFETY: callers ask for registers that CPUID says are there.
    unsafe { instr::rdmsr(register) }
}

fn is_intel() -> bool {
    instr::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu")
}

/// Gives each field's name and value, always in the same order.
fn collect(put: &mut dyn FnMut(&'static str, u64)) {
    let (gdt, gdt_limit) = instr::sgdt();
    let (idt, idt_limit) = instr::sidt();
    put("gdtr_base", gdt);
    put("gdtr_limit", gdt_limit.into());
    put("idtr_base", idt);
    put("idtr_limit", idt_limit.into());
    segments(put);
    put("cr0", instr::read_cr0());
    put("cr2", instr::read_cr2());
    put("cr3", instr::read_cr3());
    put("cr4", instr::read_cr4());
    put("cr8", instr::read_cr8());
    put("dr0", instr::read_dr0());
    put("dr1", instr::read_dr1());
    put("dr2", instr::read_dr2());
    put("dr3", instr::read_dr3());
    put("dr6", instr::read_dr6());
    put("dr7", instr::read_dr7());
    if instr::read_cr4() >> 18 & 1 != 0 {
        // SAFETY: CR4.OSXSAVE is set.
        put("xcr0", unsafe { instr::xgetbv() });
    }
    registers(put);
    mtrrs(put);
}

fn segments(put: &mut dyn FnMut(&'static str, u64)) {
    const NAMES: [[&str; 3]; 8] = [
        ["cs", "cs_rights", "cs_limit"],
        ["ss", "ss_rights", "ss_limit"],
        ["ds", "ds_rights", "ds_limit"],
        ["es", "es_rights", "es_limit"],
        ["fs", "fs_rights", "fs_limit"],
        ["gs", "gs_rights", "gs_limit"],
        ["tr", "tr_rights", "tr_limit"],
        ["ldtr", "ldtr_rights", "ldtr_limit"],
    ];
    let selectors = [
        instr::read_cs(),
        instr::read_ss(),
        instr::read_ds(),
        instr::read_es(),
        instr::read_fs(),
        instr::read_gs(),
        instr::str(),
        instr::sldt(),
    ];
    for (names, selector) in NAMES.iter().zip(selectors) {
        put(names[0], selector.into());
        put(names[1], instr::lar(selector).into());
        put(names[2], instr::lsl(selector).into());
    }
    put("tr_base", tr_base(selectors[6]));
}

/// Base in the 16-byte TSS descriptor (Intel SDM volume 3, 9.2.3).
fn tr_base(selector: u16) -> u64 {
    let (gdt, limit) = instr::sgdt();
    let at = u64::from(selector & !7);
    if at == 0 || at + 15 > u64::from(limit) {
        return 0;
    }
    let entry = core::ptr::with_exposed_provenance::<[u64; 2]>((gdt + at) as usize);
    // SAFETY: within the GDT, which this kernel maps.
    let [low, high] = unsafe { entry.read_unaligned() };
    low >> 16 & 0xFF_FFFF | low >> 56 << 24 | high << 32
}

fn registers(put: &mut dyn FnMut(&'static str, u64)) {
    for (name, register) in [
        ("efer", 0xC000_0080),
        ("star", 0xC000_0081),
        ("lstar", 0xC000_0082),
        ("cstar", 0xC000_0083),
        ("fmask", 0xC000_0084),
        ("fs_base", 0xC000_0100),
        ("gs_base", 0xC000_0101),
        ("kernel_gs_base", 0xC000_0102),
        ("sysenter_cs", 0x174),
        ("sysenter_esp", 0x175),
        ("sysenter_eip", 0x176),
        ("pat", 0x277),
        ("apic_base", 0x1B),
    ] {
        put(name, msr(register));
    }
    if instr::cpuid(0x8000_0001, 0)[3] >> 27 & 1 != 0 {
        put("tsc_aux", msr(0xC000_0103));
    }
    if is_intel() {
        put("feature_control", msr(0x3A));
        // No CPUID bit announces these two, and not every emulator has them.
        for (name, register) in [("misc_enable", 0x1A0), ("debugctl", 0x1D9)] {
            if let Some(value) = instr::rdmsr_probe(register) {
                put(name, value);
            }
        }
    } else if instr::cpuid(0x8000_0001, 0)[2] >> 2 & 1 != 0 {
        put("vm_cr", msr(0xC001_0114));
        put("vm_hsave_pa", msr(0xC001_0117));
    }
}

fn mtrrs(put: &mut dyn FnMut(&'static str, u64)) {
    if instr::cpuid(1, 0)[3] >> 12 & 1 == 0 {
        return;
    }
    let capabilities = msr(0xFE);
    put("mtrr_cap", capabilities);
    put("mtrr_def_type", msr(0x2FF));
    if capabilities >> 8 & 1 != 0 {
        for (name, register) in FIXED_MTRRS {
            put(name, msr(register));
        }
    }
    let count = (capabilities & 0xFF) as usize * 2;
    for (name, register) in VARIABLE_MTRRS.iter().take(count).zip(0x200..) {
        put(name, msr(register));
    }
}

unsafe extern "C" fn take(_context: ULONG_PTR) -> ULONG_PTR {
    let Some(row) = ROWS.get(crate::ke::current_cpu() as usize) else {
        return 0;
    };
    let mut at = 0;
    collect(&mut |_, value| {
        if let Some(field) = row.get(at) {
            field.store(value, Ordering::Relaxed);
        }
        at += 1;
    });
    0
}

/// Takes the state of all processors.
pub(super) fn all() -> String {
    // SAFETY: the routine touches its own row only.
    unsafe { nt::KeIpiGenericCall(take, 0) };
    let mut names = Vec::new();
    collect(&mut |name, _| names.push(name));
    let cpus = (crate::ke::cpu_count() as usize).min(CPUS);
    let rows: Vec<String> = ROWS[..cpus]
        .iter()
        .map(|row| {
            let fields = names.iter().zip(row);
            let fields: Vec<String> = fields
                .map(|(name, value)| format!("\"{name}\":\"{:#x}\"", value.load(Ordering::Relaxed)))
                .collect();
            format!("{{{}}}", fields.join(","))
        })
        .collect();
    format!("{{\"cpus\":[{}]}}", rows.join(","))
}
