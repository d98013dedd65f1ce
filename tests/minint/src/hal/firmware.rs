//! What firmware does on a real machine before the system starts, on every
//! processor alike: memory types (MTRRs, PAT), and the switch for virtualization:
//! IA32_FEATURE_CONTROL on Intel, VM_CR on AMD.
//!
//! Command line: `mtrr=uc-default` (variable ranges name the RAM), `wb-default` (they
//! name the hole below 4 GiB) or `odd` (besides the RAM, ranges that lie over it:
//! 1 MiB write-through from 116 MiB + 64 KiB on in pieces, one page uncacheable);
//! `vmxe=set` (somebody has CR4.VMXE set); `feature_control=locked-on` (default),
//! `locked-off`, `unlocked` (written, not locked), `zero` (never written), `bsp-only`
//! (application processors are left at zero, a firmware fault that exists).
//! On AMD: `svm=enabled` (default: VM_CR is 0), `locked-on` (LOCK alone), `disabled`
//! (SVMDIS), `locked` (SVMDIS and LOCK), `bsp-only` (application processors are
//! locked off); `svme=set` (somebody has EFER.SVME set).
//! Runs once a processor, interrupts off.

use core::sync::atomic::{AtomicBool, Ordering};

use super::{boot, cmos, instr};

const IA32_FEATURE_CONTROL: u32 = 0x3A;
const IA32_MTRRCAP: u32 = 0xFE;
const IA32_MTRR_PHYSBASE0: u32 = 0x200;
const IA32_PAT: u32 = 0x277;
const IA32_MTRR_DEF_TYPE: u32 = 0x2FF;
const EFER: u32 = 0xC000_0080;
/// Named so in AMD64 APM volume 2, "SVM Related MSRs".
const VM_CR: u32 = 0xC001_0114;
/// 64 KiB, two of 16 KiB, eight of 4 KiB.
const FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F,
];

const UNCACHEABLE: u64 = 0;
const WRITE_THROUGH: u64 = 4;
const WRITE_PROTECTED: u64 = 5;
const WRITE_BACK: u64 = 6;

/// Writes to VM_CR have no effect, as in QEMU.
static VM_CR_IGNORED: AtomicBool = AtomicBool::new(false);

/// PAT as Windows programs it: WB, WC, UC-, UC, and the same again.
const WINDOWS_PAT: u64 = 0x0007_0106_0007_0106;

/// The firmware's duties on this processor.
pub(crate) fn initialize(bootstrap: bool) {
    let [_, _, ecx, edx] = instr::cpuid(1, 0);
    if edx >> 12 & 1 == 1 {
        memory_types();
    }
    if edx >> 16 & 1 == 1 {
        // SAFETY: CPUID offers the PAT, and all eight types are defined ones.
        unsafe { instr::wrmsr(IA32_PAT, WINDOWS_PAT) };
    }
    if ecx >> 5 & 1 == 1 {
        if boot::option("vmxe") == Some("set") {
            // SAFETY: CPUID offers VMX, so the bit can be set; nothing else changes.
            unsafe { instr::write_cr4(instr::read_cr4() | 1 << 13) };
        }
        feature_control(bootstrap);
    }
    if has_svm() {
        vm_cr(bootstrap);
    }
}

/// CPUID Fn8000_0001 ECX bit 2, on AMD's processors alone.
pub(crate) fn has_svm() -> bool {
    const SVM: u32 = 1 << 2;
    instr::cpuid(0x8000_0000, 0)[0] >= 0x8000_0001 && instr::cpuid(0x8000_0001, 0)[2] & SVM != 0
}

/// What VM_CR must read on this processor.
#[cfg(feature = "core-only")]
pub(crate) fn expected_vm_cr(bootstrap: bool) -> u64 {
    if VM_CR_IGNORED.load(Ordering::Acquire) {
        return 0;
    }
    wanted_vm_cr(bootstrap)
}

fn wanted_vm_cr(bootstrap: bool) -> u64 {
    const LOCK: u64 = 1 << 3;
    const SVMDIS: u64 = 1 << 4;
    match boot::option("svm").unwrap_or("enabled") {
        "locked-on" => LOCK,
        "disabled" => SVMDIS,
        "locked" => LOCK | SVMDIS,
        "bsp-only" if !bootstrap => LOCK | SVMDIS,
        _ => 0,
    }
}

/// AMD64 APM volume 2, "Enabling SVM".
fn vm_cr(bootstrap: bool) {
    const SVME: u64 = 1 << 12;
    if boot::option("svme") == Some("set") {
        // SAFETY: every x86-64 processor has the register.
        let efer = unsafe { instr::rdmsr(EFER) };
        // SAFETY: CPUID offers SVM, so the bit can be set; nothing else changes.
        unsafe { instr::wrmsr(EFER, efer | SVME) };
    }
    let value = wanted_vm_cr(bootstrap);
    if value == 0 {
        return;
    }
    // SAFETY: the register comes with SVM; defined bits, which a locked one ignores.
    unsafe { instr::wrmsr(VM_CR, value) };
    // SAFETY: as above.
    if bootstrap && unsafe { instr::rdmsr(VM_CR) } != value {
        VM_CR_IGNORED.store(true, Ordering::Release);
        log!("firmware: this machine ignores writes to VM_CR: SVM stays enabled");
    }
}

/// Intel SDM volume 3, 25.7 "Enabling and Entering VMX Operation".
fn feature_control(bootstrap: bool) {
    const LOCK: u64 = 1;
    const VMX_OUTSIDE_SMX: u64 = 4;
    let value = match boot::option("feature_control").unwrap_or("locked-on") {
        "locked-off" => LOCK,
        "unlocked" => VMX_OUTSIDE_SMX,
        "zero" => 0,
        "bsp-only" if !bootstrap => 0,
        _ => LOCK | VMX_OUTSIDE_SMX,
    };
    // SAFETY: the register comes with VMX.
    let now = unsafe { instr::rdmsr(IA32_FEATURE_CONTROL) };
    // A locked register keeps its value until reset; a processor that was started again has it.
    if now & LOCK == 0 && value != 0 {
        // SAFETY: bits that CPUID.1:ECX.VMX offers.
        unsafe { instr::wrmsr(IA32_FEATURE_CONTROL, value) };
    }
}

/// Intel SDM volume 3, 13.11.8 "MTRR Considerations in MP Systems".
fn memory_types() {
    // SAFETY: CPUID offers MTRRs.
    let capability = unsafe { instr::rdmsr(IA32_MTRRCAP) };
    let variable = (capability & 0xFF) as usize;
    let fixed = capability >> 8 & 1 == 1;
    let [width, ..] = instr::cpuid(0x8000_0008, 0);
    let address_mask = (1u64 << (width & 0xFF)) - 1;

    let cr0 = instr::read_cr0();
    // SAFETY: CD on, NW off: no-fill mode, contents stay.
    unsafe { instr::write_cr0(cr0 | 1 << 30) };
    instr::wbinvd();
    // SAFETY: MTRRs off while they change.
    unsafe { instr::wrmsr(IA32_MTRR_DEF_TYPE, 0) };
    if fixed {
        for register in FIXED {
            let kind = match register {
                0x250 | 0x258 => WRITE_BACK,
                0x259 => UNCACHEABLE,
                _ => WRITE_PROTECTED,
            };
            // SAFETY: MTRRCAP.FIX says that the register exists; the type is a defined one.
            unsafe { instr::wrmsr(register, kind * 0x0101_0101_0101_0101) };
        }
    }
    let low = cmos_low();
    let high = cmos_high();
    let kind = boot::option("mtrr");
    let by_ram = kind != Some("wb-default");
    let mut register = 0;
    let mut range = |start: u64, length: u64, kind: u64| {
        if register < variable {
            let msr = IA32_MTRR_PHYSBASE0 + 2 * register as u32;
            // SAFETY: MTRRCAP.VCNT says that the pair exists; base and mask are aligned to a power of two.
            unsafe { instr::wrmsr(msr, start | kind) };
            let mask = !(length - 1) & address_mask & !0xFFF;
            // SAFETY: as above.
            unsafe { instr::wrmsr(msr + 1, mask | 1 << 11) };
            register += 1;
        }
    };
    if by_ram {
        powers_of_two(0, low, &mut |start, length| {
            range(start, length, WRITE_BACK);
        });
        powers_of_two(1 << 32, high, &mut |start, length| {
            range(start, length, WRITE_BACK);
        });
    } else {
        range(0xC000_0000, 0x4000_0000, UNCACHEABLE);
    }
    if kind == Some("odd") {
        // Where ranges overlap, write-through wins over write-back, and uncacheable
        // over all (Intel SDM volume 3, 13.11.4.1 "MTRR Precedences").
        range(0x0741_0000, 0x1_0000, WRITE_THROUGH);
        range(0x0748_0000, 0x8_0000, WRITE_THROUGH);
        range(0x0780_3000, 0x1000, UNCACHEABLE);
    }
    let default = if by_ram { UNCACHEABLE } else { WRITE_BACK };
    // SAFETY: MTRRs on, fixed ones if there are any.
    unsafe {
        instr::wrmsr(
            IA32_MTRR_DEF_TYPE,
            default | u64::from(fixed) << 10 | 1 << 11,
        );
    };
    instr::wbinvd();
    // SAFETY: caches on again.
    unsafe { instr::write_cr0(cr0 & !(3 << 29)) };
}

/// Splits a span into naturally aligned powers of two.
fn powers_of_two(mut start: u64, mut length: u64, f: &mut dyn FnMut(u64, u64)) {
    while length != 0 {
        let by_length = 1u64 << length.ilog2();
        let by_start = if start == 0 {
            by_length
        } else {
            1 << start.trailing_zeros()
        };
        let piece = by_length.min(by_start);
        f(start, piece);
        start += piece;
        length -= piece;
    }
}

fn cmos_low() -> u64 {
    static LOW: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    once(&LOW, cmos::low_memory_end)
}

fn cmos_high() -> u64 {
    static HIGH: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    once(&HIGH, || cmos::high_memory_bytes() | 1) & !1
}

/// The bootstrap processor comes first and alone; the others find the value.
fn once(cell: &core::sync::atomic::AtomicU64, f: impl FnOnce() -> u64) -> u64 {
    use core::sync::atomic::Ordering;
    if cell.load(Ordering::Acquire) == 0 {
        cell.store(f(), Ordering::Release);
    }
    cell.load(Ordering::Acquire)
}
