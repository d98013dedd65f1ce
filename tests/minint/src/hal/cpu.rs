//! One processor's own tables: KPCR behind GS, GDT, IDT, TSS, control registers
//! and the system-call MSRs, with the selectors and limits of 64-bit Windows.
//!
//! [`Cpu`] is the kernel's per-processor data; it lies behind the documented part
//! of the KPCR. Another processor may read it: everything in it is atomic or under
//! a lock. Offsets that compiled drivers use (`gs:[0x188]` is the current thread)
//! are checked at compile time.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::{entry, instr};
use crate::ke::dpc::DpcQueue;
use crate::ke::spinlock::IrqLock;

/// Most processors of this machine.
pub const MAX_CPUS: usize = 16;

/// `KGDT64_R0_CODE`.
pub const R0_CODE: u16 = 0x10;
/// `KGDT64_R0_DATA`.
pub const R0_DATA: u16 = 0x18;
/// `KGDT64_R3_DATA | RPL_MASK`.
pub const R3_DATA: u16 = 0x28 | 3;
/// `KGDT64_R3_CODE | RPL_MASK`.
pub const R3_CODE: u16 = 0x30 | 3;
const R3_COMPATIBILITY_CODE: u16 = 0x20 | 3;
const SYSTEM_TSS: u16 = 0x40;
const R3_COMPATIBILITY_TEB: u16 = 0x50 | 3;

/// Interrupt stack table slots, as Windows numbers them.
pub(crate) const IST_DOUBLE_FAULT: u8 = 1;
pub(crate) const IST_MACHINE_CHECK: u8 = 2;
pub(crate) const IST_NMI: u8 = 3;
/// Bytes of an IST stack. Its topmost slot holds the KPCR address.
pub(crate) const IST_BYTES: usize = 16 * 1024;

/// Per-processor data of the kernel.
#[derive(Debug)]
pub struct Cpu {
    /// Index, from 0.
    pub number: AtomicU32,
    /// Local APIC id.
    pub apic_id: AtomicU32,
    /// Set when it runs threads.
    pub online: AtomicBool,
    /// Requests of other processors (`ke::ipi`).
    pub mailbox: AtomicU32,
    /// DPCs that wait for this processor.
    pub dpcs: IrqLock<DpcQueue>,
    /// A DPC routine runs now.
    pub dpc_active: AtomicBool,
    /// Top of the DPC stack.
    pub dpc_stack: AtomicUsize,
    /// The dispatch interrupt shall look for another thread.
    pub reschedule: AtomicBool,
    /// The current thread's quantum is used up.
    pub quantum_end: AtomicBool,
    /// Clock ticks left of it.
    pub quantum: AtomicI32,
    /// A timer is due (processor 0 only).
    pub timer_due: AtomicBool,
    /// Clock ticks so far.
    pub ticks: AtomicU64,
    /// Interrupts that run now, nested.
    pub interrupt_depth: AtomicU32,
    /// Nested or nonstandard NMIs seen.
    pub nmis: AtomicU64,
    /// Physical root of the address space in use.
    pub root: AtomicU64,
    /// Frozen by a bugcheck of another processor.
    pub frozen: AtomicBool,
}

/// `KPCR` with `KPRCB` at 0x180, as far as drivers may look, then [`Cpu`].
#[repr(C, align(4096))]
pub struct Kpcr {
    gdt_base: UnsafeCell<usize>,
    tss_base: UnsafeCell<usize>,
    /// Ring-3 stack pointer during a system call's first instructions.
    user_rsp: UnsafeCell<usize>,
    this: UnsafeCell<usize>,
    current_prcb: UnsafeCell<usize>,
    lock_array: UnsafeCell<usize>,
    used_self: UnsafeCell<usize>,
    idt_base: UnsafeCell<usize>,
    reserved: [u64; 40],
    mxcsr: UnsafeCell<u32>,
    legacy_number: UnsafeCell<u8>,
    reserved_zero: [u8; 3],
    /// Running thread (KPRCB.CurrentThread).
    current_thread: AtomicUsize,
    next_thread: UnsafeCell<usize>,
    /// Thread that runs when there is no other.
    pub idle_thread: AtomicUsize,
    nesting: [u8; 4],
    number: UnsafeCell<u32>,
    /// Kernel stack for the next entry from ring 3 (KPRCB.RspBase).
    rsp_base: AtomicUsize,
    reserved_prcb: [u64; 10],
    cpu: Cpu,
    gdt: UnsafeCell<[u64; 11]>,
    tss: UnsafeCell<Tss>,
    idt: UnsafeCell<[[u64; 2]; 256]>,
}

// The documented or compiled-in places.
const _: () = assert!(offset_of!(Kpcr, user_rsp) == 0x10);
const _: () = assert!(offset_of!(Kpcr, this) == 0x18);
const _: () = assert!(offset_of!(Kpcr, current_prcb) == 0x20);
const _: () = assert!(offset_of!(Kpcr, mxcsr) == 0x180);
const _: () = assert!(offset_of!(Kpcr, legacy_number) == 0x184);
const _: () = assert!(offset_of!(Kpcr, current_thread) == 0x188);
const _: () = assert!(offset_of!(Kpcr, idle_thread) == 0x198);
const _: () = assert!(offset_of!(Kpcr, number) == 0x1A4);
const _: () = assert!(offset_of!(Kpcr, rsp_base) == 0x1A8);

/// 64-bit TSS (Intel SDM volume 3, 9.7), without an I/O bitmap.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map: u16,
}

const _: () = assert!(size_of::<Tss>() == 104);

// SAFETY: the UnsafeCells are written by the owning processor alone, before it runs
// threads or with interrupts off; the rest is atomic or locked.
unsafe impl Sync for Kpcr {}

impl Kpcr {
    const fn new() -> Self {
        Self {
            gdt_base: UnsafeCell::new(0),
            tss_base: UnsafeCell::new(0),
            user_rsp: UnsafeCell::new(0),
            this: UnsafeCell::new(0),
            current_prcb: UnsafeCell::new(0),
            lock_array: UnsafeCell::new(0),
            used_self: UnsafeCell::new(0),
            idt_base: UnsafeCell::new(0),
            reserved: [0; 40],
            mxcsr: UnsafeCell::new(0x1F80),
            legacy_number: UnsafeCell::new(0),
            reserved_zero: [0; 3],
            current_thread: AtomicUsize::new(0),
            next_thread: UnsafeCell::new(0),
            idle_thread: AtomicUsize::new(0),
            nesting: [0; 4],
            number: UnsafeCell::new(0),
            rsp_base: AtomicUsize::new(0),
            reserved_prcb: [0; 10],
            cpu: Cpu {
                number: AtomicU32::new(0),
                apic_id: AtomicU32::new(0),
                online: AtomicBool::new(false),
                mailbox: AtomicU32::new(0),
                dpcs: IrqLock::new(DpcQueue::new()),
                dpc_active: AtomicBool::new(false),
                dpc_stack: AtomicUsize::new(0),
                reschedule: AtomicBool::new(false),
                quantum_end: AtomicBool::new(false),
                quantum: AtomicI32::new(0),
                timer_due: AtomicBool::new(false),
                ticks: AtomicU64::new(0),
                interrupt_depth: AtomicU32::new(0),
                nmis: AtomicU64::new(0),
                root: AtomicU64::new(0),
                frozen: AtomicBool::new(false),
            },
            gdt: UnsafeCell::new([0; 11]),
            tss: UnsafeCell::new(Tss {
                reserved0: 0,
                rsp: [0; 3],
                reserved1: 0,
                ist: [0; 7],
                reserved2: 0,
                reserved3: 0,
                io_map: 104,
            }),
            idt: UnsafeCell::new([[0; 2]; 256]),
        }
    }
}

impl Kpcr {
    /// Address of the thread that runs on this processor, 0 before there is one.
    pub(crate) fn thread(&self) -> usize {
        self.current_thread.load(Ordering::Acquire)
    }
}

static KPCRS: [Kpcr; MAX_CPUS] = [const { Kpcr::new() }; MAX_CPUS];

/// The KPCR of processor `number`.
pub(crate) fn kpcr(number: usize) -> &'static Kpcr {
    &KPCRS[number]
}

/// The data of processor `number`.
pub fn of(number: usize) -> &'static Cpu {
    &KPCRS[number].cpu
}

/// Number of the processor that runs this; 0 before GS is set up.
pub fn current_number() -> u32 {
    if READY.load(Ordering::Relaxed) {
        instr::gs_u32::<0x1A4>()
    } else {
        0
    }
}

static READY: AtomicBool = AtomicBool::new(false);

/// The data of the processor that runs this. Stable only while the thread cannot
/// move: at DISPATCH_LEVEL or above, or with interrupts off.
pub fn current() -> &'static Cpu {
    of(current_number() as usize)
}

/// Address of the running thread.
pub(crate) fn current_thread() -> usize {
    instr::gs_u64::<0x188>() as usize
}

/// Changes the running thread; interrupts are off or the IRQL is DISPATCH_LEVEL.
pub(crate) fn set_current_thread(number: u32, thread: usize) {
    KPCRS[number as usize]
        .current_thread
        .store(thread, Ordering::Release);
}

/// Sets the stack for the next entry from ring 3.
pub(crate) fn set_kernel_stack(number: u32, top: usize) {
    let kpcr = &KPCRS[number as usize];
    kpcr.rsp_base.store(top, Ordering::Relaxed);
    let rsp0 = kpcr
        .tss
        .get()
        .cast::<u8>()
        .wrapping_add(offset_of!(Tss, rsp))
        .cast::<u64>();
    // SAFETY: the field of this processor's TSS, aligned to 4; the processor reads it only on entry from ring 3.
    unsafe { rsp0.write_unaligned(top as u64) };
}

/// Sets IST stack `slot` (1–7) of processor `number` to end at `top`.
pub(crate) fn set_ist(number: usize, slot: u8, top: usize) {
    let kpcr = &KPCRS[number];
    // The topmost 16 bytes tell the entry stub whose stack this is.
    let mark = (top - 16) as *mut usize;
    // SAFETY: the stack was just made for this and is mapped.
    unsafe { mark.write(core::ptr::from_ref(kpcr) as usize) };
    let offset = offset_of!(Tss, ist) + 8 * (usize::from(slot) - 1);
    let field = kpcr
        .tss
        .get()
        .cast::<u8>()
        .wrapping_add(offset)
        .cast::<u64>();
    // SAFETY: as in `set_kernel_stack`.
    unsafe { field.write_unaligned(top as u64 - 16) };
}

fn gate(handler: usize, ist: u8, dpl: u8) -> [u64; 2] {
    let handler = handler as u64;
    let low = handler & 0xFFFF
        | u64::from(R0_CODE) << 16
        | u64::from(ist) << 32
        | 0x8E00 << 32
        | u64::from(dpl) << 45
        | (handler >> 16 & 0xFFFF) << 48;
    [low, handler >> 32]
}

/// Brings this processor's tables and control registers into the state in which
/// Windows runs; first thing on each processor, interrupts off.
pub(crate) fn initialize(number: u32) {
    let kpcr = &KPCRS[number as usize];
    let base = core::ptr::from_ref(kpcr) as usize;
    let gdt = kpcr.gdt.get() as usize;
    let tss = kpcr.tss.get() as usize;
    let idt = kpcr.idt.get() as usize;
    let set = |cell: &UnsafeCell<usize>, value| {
        // SAFETY: nobody else looks at this processor's KPCR yet.
        unsafe { *cell.get() = value };
    };
    set(&kpcr.gdt_base, gdt);
    set(&kpcr.tss_base, tss);
    set(&kpcr.this, base);
    set(&kpcr.used_self, base);
    set(&kpcr.current_prcb, base + 0x180);
    set(&kpcr.idt_base, idt);
    // SAFETY: as in `set`.
    unsafe { *kpcr.legacy_number.get() = number as u8 };
    // SAFETY: as in `set`.
    unsafe { *kpcr.number.get() = number };
    kpcr.cpu.number.store(number, Ordering::Relaxed);

    let tss_low =
        0x67 | (tss as u64 & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss as u64 >> 24 & 0xFF) << 56;
    let descriptors = [
        0,
        0,
        0x0020_9B00_0000_0000,
        0x00CF_9300_0000_FFFF,
        0x00CF_FB00_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        0x0020_FB00_0000_0000,
        0,
        tss_low,
        tss as u64 >> 32,
        0x0040_F300_0000_3C00,
    ];
    // SAFETY: this processor's own GDT, not loaded yet.
    unsafe { *kpcr.gdt.get() = descriptors };
    let mut gates = [[0; 2]; 256];
    for (vector, slot) in gates.iter_mut().enumerate() {
        let ist = match vector {
            2 => IST_NMI,
            8 => IST_DOUBLE_FAULT,
            18 => IST_MACHINE_CHECK,
            _ => 0,
        };
        let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
        *slot = gate(entry::vector(vector), ist, dpl);
    }
    // SAFETY: this processor's own IDT, not loaded yet.
    unsafe { *kpcr.idt.get() = gates };

    // SAFETY: the table holds the selectors that are loaded next.
    unsafe { instr::lgdt(gdt as u64, 0x57) };
    // SAFETY: the descriptors just written: 64-bit ring-0 code, flat data.
    unsafe { instr::load_segments(R0_CODE, R0_DATA, R3_DATA, R3_COMPATIBILITY_TEB) };
    // SAFETY: each gate leads to an entry stub.
    unsafe { instr::lidt(idt as u64, 0xFFF) };
    // SAFETY: the TSS descriptor is available and describes this processor's TSS.
    unsafe { instr::ltr(SYSTEM_TSS) };
    // SAFETY: ring 0 finds its KPCR there.
    unsafe { instr::wrmsr(IA32_GS_BASE, base as u64) };
    // SAFETY: ring 3 starts without a TEB.
    unsafe { instr::wrmsr(IA32_KERNEL_GS_BASE, 0) };
    READY.store(true, Ordering::Release);
    control_registers();
    system_call_registers(number);
}

const IA32_EFER: u32 = 0xC000_0080;
const IA32_STAR: u32 = 0xC000_0081;
const IA32_LSTAR: u32 = 0xC000_0082;
const IA32_CSTAR: u32 = 0xC000_0083;
const IA32_FMASK: u32 = 0xC000_0084;
const IA32_GS_BASE: u32 = 0xC000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xC000_0102;
const IA32_TSC_AUX: u32 = 0xC000_0103;

/// CR4 of a Windows 10 kernel without virtualization-based security, less what
/// this processor lacks: DE, PSE, PAE, MCE, PGE, OSFXSR, OSXMMEXCPT, UMIP,
/// FSGSBASE, OSXSAVE, SMEP, SMAP.
fn control_registers() {
    let [_, _, features, _] = instr::cpuid(1, 0);
    let [_, structured, structured_ecx, _] = instr::cpuid(7, 0);
    let mut cr4 = 0x6F8;
    for (bit, present) in [
        (11, structured_ecx >> 2 & 1 == 1),
        (16, structured & 1 == 1),
        (18, features >> 26 & 1 == 1),
        (20, structured >> 7 & 1 == 1),
        (21, structured >> 20 & 1 == 1),
    ] {
        cr4 |= u64::from(present) << bit;
    }
    // SAFETY: the kernel's pages are supervisor pages with their own rights, so SMEP and SMAP do not bite it.
    unsafe { instr::write_cr4(cr4) };
    // PE, MP, ET, NE, WP, AM, PG.
    // SAFETY: paging stays on; caches stay on.
    unsafe { instr::write_cr0(0x8005_0033) };
    if cr4 >> 18 & 1 == 1 {
        // x87, SSE, AVX, AVX-512: what NT's scheduler saves by default.
        let [low, ..] = instr::cpuid(0xD, 0);
        // SAFETY: only components that CPUID offers, AVX-512 as a whole or not at all.
        unsafe { instr::xsetbv(0, xcr0_of(low)) };
    }
}

fn xcr0_of(supported: u32) -> u64 {
    let mut value = supported & 0b111;
    if supported & 0xE0 == 0xE0 {
        value |= 0xE0;
    }
    u64::from(value)
}

/// Save area components in use (XCR0), and bytes of an area.
pub fn extended_state() -> (u64, usize) {
    if instr::read_cr4() >> 18 & 1 == 0 {
        return (0, 512);
    }
    let [low, bytes, ..] = instr::cpuid(0xD, 0);
    (xcr0_of(low), bytes as usize)
}

fn system_call_registers(number: u32) {
    let [_, _, _, extended] = instr::cpuid(0x8000_0001, 0);
    // SAFETY: every x86-64 processor has EFER; LME and LMA stay as they are.
    let efer = unsafe { instr::rdmsr(IA32_EFER) };
    // SAFETY: SCE and NXE take effect for code that expects them.
    unsafe { instr::wrmsr(IA32_EFER, efer | 0x801) };
    let star = u64::from(R3_COMPATIBILITY_CODE) << 48 | u64::from(R0_CODE) << 32;
    // SAFETY: selectors of this GDT.
    unsafe { instr::wrmsr(IA32_STAR, star) };
    // SAFETY: the entry stub for system calls.
    unsafe { instr::wrmsr(IA32_LSTAR, entry::system_call() as u64) };
    // SAFETY: 32-bit ring-3 code does not exist here; the stub refuses.
    unsafe { instr::wrmsr(IA32_CSTAR, entry::system_call() as u64) };
    // TF, IF, DF, NT, AC.
    // SAFETY: flags that the kernel must not inherit.
    unsafe { instr::wrmsr(IA32_FMASK, 0x4_4700) };
    if extended >> 27 & 1 == 1 {
        // SAFETY: the register comes with RDTSCP.
        unsafe { instr::wrmsr(IA32_TSC_AUX, u64::from(number)) };
    }
}
