//! The virtual machine control block: the page in which the processor finds what
//! to intercept and leaves what it saw, and the guest's state.
//!
//! The processor reads and writes it only inside VMRUN, VMLOAD, VMSAVE and
//! #VMEXIT, that is, while no instruction of ours runs on the core that owns the
//! block. So plain [`Cell`]s are enough; the block is never looked at by another
//! core. A page of zeros is a valid block with nothing intercepted.
//!
//! AMD APM vol. 2, appendix B, "Layout of VMCB", appendix C, "SVM Intercept Exit
//! Codes", and the sections of chapter 15 named below.

use core::cell::Cell;

/// Bytes that mean nothing here.
type Reserved<const N: usize> = [Cell<u8>; N];

/// The whole block.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// Offset 000H: what to intercept, and what was.
    pub control: Control,
    /// Offset 400H: the guest's state.
    pub state: State,
}

/// The control area.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    /// 000H: reads of CR0 to CR15, a bit each.
    pub intercept_cr_reads: Cell<u16>,
    /// 002H: writes of CR0 to CR15.
    pub intercept_cr_writes: Cell<u16>,
    /// 004H: reads of DR0 to DR15.
    pub intercept_dr_reads: Cell<u16>,
    /// 006H: writes of DR0 to DR15.
    pub intercept_dr_writes: Cell<u16>,
    /// 008H: exceptions 0 to 31, before they are delivered.
    pub intercept_exceptions: Cell<u32>,
    /// 00CH: [`misc1`].
    pub intercept_misc1: Cell<u32>,
    /// 010H: [`misc2`].
    pub intercept_misc2: Cell<u32>,
    /// 014H: [`misc3`].
    pub intercept_misc3: Cell<u32>,
    reserved_018: Reserved<0x24>,
    /// 03CH.
    pub pause_filter_threshold: Cell<u16>,
    /// 03EH.
    pub pause_filter_count: Cell<u16>,
    /// 040H: physical address of the I/O permissions map, three pages.
    pub iopm_base_pa: Cell<u64>,
    /// 048H: physical address of the MSR permissions map, two pages.
    pub msrpm_base_pa: Cell<u64>,
    /// 050H: added to what the guest reads from the TSC.
    pub tsc_offset: Cell<u64>,
    /// 058H: address-space identifier; 0 is the host's.
    pub guest_asid: Cell<u32>,
    /// 05CH: [`tlb`].
    pub tlb_control: Cell<u8>,
    reserved_05d: Reserved<3>,
    /// 060H: [`virtual_interrupt`].
    pub virtual_interrupt: Cell<u64>,
    /// 068H: [`shadow`].
    pub interrupt_shadow: Cell<u64>,
    /// 070H: why the guest was left, [`code`].
    pub exit_code: Cell<u64>,
    /// 078H.
    pub exit_info1: Cell<u64>,
    /// 080H.
    pub exit_info2: Cell<u64>,
    /// 088H: the event whose delivery was interrupted, laid out as [`event`] says.
    pub exit_int_info: Cell<u64>,
    /// 090H: [`nested`].
    pub nested_control: Cell<u64>,
    /// 098H.
    pub avic_apic_bar: Cell<u64>,
    /// 0A0H.
    pub ghcb_pa: Cell<u64>,
    /// 0A8H: the event that the next entry delivers, laid out as [`event`] says.
    pub event_inj: Cell<u64>,
    /// 0B0H: physical address of the nested tables' root.
    pub n_cr3: Cell<u64>,
    /// 0B8H: [`lbr`].
    pub lbr_virtualization: Cell<u64>,
    /// 0C0H: [`clean`].
    pub clean: Cell<u64>,
    /// 0C8H: where the instruction after the intercepted one begins, with NRIP
    /// save; 0 after exits that are not an instruction's.
    pub next_rip: Cell<u64>,
    /// 0D0H: how many of the bytes that follow were fetched, in the low four bits;
    /// with decode assists.
    pub bytes_fetched: Cell<u8>,
    /// 0D1H: the instruction's bytes after nested page faults of data accesses,
    /// with decode assists.
    pub instruction_bytes: [Cell<u8>; 15],
    /// 0E0H.
    pub avic_backing_page: Cell<u64>,
    reserved_0e8: Reserved<8>,
    /// 0F0H.
    pub avic_logical_table: Cell<u64>,
    /// 0F8H.
    pub avic_physical_table: Cell<u64>,
    reserved_100: Reserved<8>,
    /// 108H: physical address of an encrypted guest's state.
    pub vmsa_pa: Cell<u64>,
    reserved_110: Reserved<0x10>,
    /// 120H.
    pub bus_lock_threshold: Cell<u16>,
    reserved_122: Reserved<0x2DE>,
}

/// A segment or descriptor-table register.
#[derive(Debug)]
#[repr(C)]
pub struct Segment {
    /// Selector; not used for GDTR and IDTR.
    pub selector: Cell<u16>,
    /// The descriptor's attributes, in the 12-bit form of [`attributes`].
    pub attributes: Cell<u16>,
    /// Limit in bytes, whatever the granularity.
    pub limit: Cell<u32>,
    /// Base.
    pub base: Cell<u64>,
}

/// The state save area.
///
/// VMRUN loads and #VMEXIT saves ES, CS, SS, DS, GDTR, IDTR, CPL, EFER, CR0, CR2,
/// CR3, CR4, DR6, DR7, RFLAGS, RIP, RSP, RAX and, with CET, its three registers;
/// with nested paging also the guest's PAT. FS, GS, TR, LDTR, KernelGSBase, STAR,
/// LSTAR, CSTAR, SFMASK and the SYSENTER registers are VMLOAD's and VMSAVE's
/// alone.
#[derive(Debug)]
#[repr(C)]
pub struct State {
    /// 000H.
    pub es: Segment,
    /// 010H.
    pub cs: Segment,
    /// 020H.
    pub ss: Segment,
    /// 030H.
    pub ds: Segment,
    /// 040H.
    pub fs: Segment,
    /// 050H.
    pub gs: Segment,
    /// 060H.
    pub gdtr: Segment,
    /// 070H.
    pub ldtr: Segment,
    /// 080H.
    pub idtr: Segment,
    /// 090H.
    pub tr: Segment,
    reserved_0a0: Reserved<0x2B>,
    /// 0CBH: current privilege level.
    pub cpl: Cell<u8>,
    reserved_0cc: Reserved<4>,
    /// 0D0H.
    pub efer: Cell<u64>,
    reserved_0d8: Reserved<0x70>,
    /// 148H.
    pub cr4: Cell<u64>,
    /// 150H.
    pub cr3: Cell<u64>,
    /// 158H.
    pub cr0: Cell<u64>,
    /// 160H.
    pub dr7: Cell<u64>,
    /// 168H.
    pub dr6: Cell<u64>,
    /// 170H.
    pub rflags: Cell<u64>,
    /// 178H.
    pub rip: Cell<u64>,
    reserved_180: Reserved<0x58>,
    /// 1D8H.
    pub rsp: Cell<u64>,
    /// 1E0H: with shadow stacks.
    pub s_cet: Cell<u64>,
    /// 1E8H: with shadow stacks.
    pub ssp: Cell<u64>,
    /// 1F0H: with shadow stacks.
    pub isst_addr: Cell<u64>,
    /// 1F8H.
    pub rax: Cell<u64>,
    /// 200H.
    pub star: Cell<u64>,
    /// 208H.
    pub lstar: Cell<u64>,
    /// 210H.
    pub cstar: Cell<u64>,
    /// 218H.
    pub sfmask: Cell<u64>,
    /// 220H.
    pub kernel_gs_base: Cell<u64>,
    /// 228H.
    pub sysenter_cs: Cell<u64>,
    /// 230H.
    pub sysenter_esp: Cell<u64>,
    /// 238H.
    pub sysenter_eip: Cell<u64>,
    /// 240H.
    pub cr2: Cell<u64>,
    reserved_248: Reserved<0x20>,
    /// 268H: the guest's PAT, with nested paging.
    pub g_pat: Cell<u64>,
    /// 270H: with LBR virtualization, as the five that follow.
    pub dbgctl: Cell<u64>,
    /// 278H.
    pub br_from: Cell<u64>,
    /// 280H.
    pub br_to: Cell<u64>,
    /// 288H.
    pub last_excp_from: Cell<u64>,
    /// 290H.
    pub last_excp_to: Cell<u64>,
    /// 298H.
    pub dbg_extn_ctl: Cell<u64>,
    reserved_2a0: Reserved<0x40>,
    /// 2E0H: with virtualized SPEC_CTRL.
    pub spec_ctrl: Cell<u64>,
    reserved_2e8: Reserved<0x918>,
}

/// Compares the place of each field with the manual's.
macro_rules! layout {
    ($type:ty: $($field:ident = $offset:literal,)*) => {
        $(const _: () = assert!(core::mem::offset_of!($type, $field) == $offset);)*
    };
}

layout! { Vmcb: control = 0, state = 0x400, }

layout! {
    Control:
    intercept_cr_reads = 0x000,
    intercept_cr_writes = 0x002,
    intercept_dr_reads = 0x004,
    intercept_dr_writes = 0x006,
    intercept_exceptions = 0x008,
    intercept_misc1 = 0x00C,
    intercept_misc2 = 0x010,
    intercept_misc3 = 0x014,
    pause_filter_threshold = 0x03C,
    pause_filter_count = 0x03E,
    iopm_base_pa = 0x040,
    msrpm_base_pa = 0x048,
    tsc_offset = 0x050,
    guest_asid = 0x058,
    tlb_control = 0x05C,
    virtual_interrupt = 0x060,
    interrupt_shadow = 0x068,
    exit_code = 0x070,
    exit_info1 = 0x078,
    exit_info2 = 0x080,
    exit_int_info = 0x088,
    nested_control = 0x090,
    avic_apic_bar = 0x098,
    ghcb_pa = 0x0A0,
    event_inj = 0x0A8,
    n_cr3 = 0x0B0,
    lbr_virtualization = 0x0B8,
    clean = 0x0C0,
    next_rip = 0x0C8,
    bytes_fetched = 0x0D0,
    instruction_bytes = 0x0D1,
    avic_backing_page = 0x0E0,
    avic_logical_table = 0x0F0,
    avic_physical_table = 0x0F8,
    vmsa_pa = 0x108,
    bus_lock_threshold = 0x120,
}

layout! { Segment: selector = 0, attributes = 2, limit = 4, base = 8, }

layout! {
    State:
    es = 0x000,
    cs = 0x010,
    ss = 0x020,
    ds = 0x030,
    fs = 0x040,
    gs = 0x050,
    gdtr = 0x060,
    ldtr = 0x070,
    idtr = 0x080,
    tr = 0x090,
    cpl = 0x0CB,
    efer = 0x0D0,
    cr4 = 0x148,
    cr3 = 0x150,
    cr0 = 0x158,
    dr7 = 0x160,
    dr6 = 0x168,
    rflags = 0x170,
    rip = 0x178,
    rsp = 0x1D8,
    s_cet = 0x1E0,
    ssp = 0x1E8,
    isst_addr = 0x1F0,
    rax = 0x1F8,
    star = 0x200,
    lstar = 0x208,
    cstar = 0x210,
    sfmask = 0x218,
    kernel_gs_base = 0x220,
    sysenter_cs = 0x228,
    sysenter_esp = 0x230,
    sysenter_eip = 0x238,
    cr2 = 0x240,
    g_pat = 0x268,
    dbgctl = 0x270,
    br_from = 0x278,
    br_to = 0x280,
    last_excp_from = 0x288,
    last_excp_to = 0x290,
    dbg_extn_ctl = 0x298,
    spec_ctrl = 0x2E0,
}

const _: () = assert!(size_of::<Control>() == 0x400);
const _: () = assert!(size_of::<State>() == 0xC00);
const _: () = assert!(size_of::<Vmcb>() == 0x1000);
const _: () = assert!(align_of::<Vmcb>() == 0x1000);

/// A segment's 12 attribute bits in the block's form, from the access rights that
/// LAR loads.
///
/// Bits 7:0 are the descriptor's bits 47:40 (type, S, DPL, P), bits 11:8 its bits
/// 55:52 (AVL, L, D/B, G): what stands in bits 15:8 and 23:20 of LAR's result. AMD
/// APM vol. 2, "VMCB State Save Area" and vol. 3, "LAR".
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "twelve bits")]
pub const fn attributes(rights: u32) -> u16 {
    (rights >> 8 & 0xFF | rights >> 12 & 0xF00) as u16
}

/// The access rights as LAR would load them, from a segment's 12 attribute bits.
#[must_use]
pub const fn rights(attributes: u16) -> u32 {
    (attributes as u32 & 0xFF) << 8 | (attributes as u32 & 0xF00) << 12
}

/// Exit codes (AMD APM vol. 2, appendix C).
pub mod code {
    /// A read of CR0; CR1 to CR15 follow.
    pub const CR0_READ: u64 = 0x00;
    /// A read of CR15.
    pub const CR15_READ: u64 = 0x0F;
    /// A write of CR0; CR1 to CR15 follow.
    pub const CR0_WRITE: u64 = 0x10;
    /// A write of CR4.
    pub const CR4_WRITE: u64 = 0x14;
    /// A write of CR15.
    pub const CR15_WRITE: u64 = 0x1F;
    /// A read of DR0; DR1 to DR15 follow.
    pub const DR0_READ: u64 = 0x20;
    /// A write of DR0; DR1 to DR15 follow.
    pub const DR0_WRITE: u64 = 0x30;
    /// A write of DR15.
    pub const DR15_WRITE: u64 = 0x3F;
    /// Exception 0; 1 to 31 follow.
    pub const EXCEPTION: u64 = 0x40;
    /// Exception 31.
    pub const EXCEPTION_LAST: u64 = 0x5F;
    /// An external interrupt.
    pub const INTR: u64 = 0x60;
    /// An NMI.
    pub const NMI: u64 = 0x61;
    /// An SMI.
    pub const SMI: u64 = 0x62;
    /// INIT.
    pub const INIT: u64 = 0x63;
    /// A virtual interrupt could be delivered.
    pub const VINTR: u64 = 0x64;
    /// A write of CR0 that changes other bits than TS and MP.
    pub const CR0_SEL_WRITE: u64 = 0x65;
    /// SIDT.
    pub const IDTR_READ: u64 = 0x66;
    /// SGDT.
    pub const GDTR_READ: u64 = 0x67;
    /// SLDT.
    pub const LDTR_READ: u64 = 0x68;
    /// STR.
    pub const TR_READ: u64 = 0x69;
    /// LIDT.
    pub const IDTR_WRITE: u64 = 0x6A;
    /// LGDT.
    pub const GDTR_WRITE: u64 = 0x6B;
    /// LLDT.
    pub const LDTR_WRITE: u64 = 0x6C;
    /// LTR.
    pub const TR_WRITE: u64 = 0x6D;
    /// RDTSC.
    pub const RDTSC: u64 = 0x6E;
    /// RDPMC.
    pub const RDPMC: u64 = 0x6F;
    /// PUSHF.
    pub const PUSHF: u64 = 0x70;
    /// POPF.
    pub const POPF: u64 = 0x71;
    /// CPUID.
    pub const CPUID: u64 = 0x72;
    /// RSM.
    pub const RSM: u64 = 0x73;
    /// IRET, before it is executed.
    pub const IRET: u64 = 0x74;
    /// INT n.
    pub const SWINT: u64 = 0x75;
    /// INVD.
    pub const INVD: u64 = 0x76;
    /// PAUSE.
    pub const PAUSE: u64 = 0x77;
    /// HLT.
    pub const HLT: u64 = 0x78;
    /// INVLPG.
    pub const INVLPG: u64 = 0x79;
    /// INVLPGA.
    pub const INVLPGA: u64 = 0x7A;
    /// IN, OUT and their string forms.
    pub const IOIO: u64 = 0x7B;
    /// RDMSR (EXITINFO1 = 0) or WRMSR (1).
    pub const MSR: u64 = 0x7C;
    /// A task switch.
    pub const TASK_SWITCH: u64 = 0x7D;
    /// FERR freeze.
    pub const FERR_FREEZE: u64 = 0x7E;
    /// Shutdown, by a triple fault for one.
    pub const SHUTDOWN: u64 = 0x7F;
    /// VMRUN.
    pub const VMRUN: u64 = 0x80;
    /// VMMCALL.
    pub const VMMCALL: u64 = 0x81;
    /// VMLOAD.
    pub const VMLOAD: u64 = 0x82;
    /// VMSAVE.
    pub const VMSAVE: u64 = 0x83;
    /// STGI.
    pub const STGI: u64 = 0x84;
    /// CLGI.
    pub const CLGI: u64 = 0x85;
    /// SKINIT.
    pub const SKINIT: u64 = 0x86;
    /// RDTSCP.
    pub const RDTSCP: u64 = 0x87;
    /// INT1.
    pub const ICEBP: u64 = 0x88;
    /// WBINVD or WBNOINVD.
    pub const WBINVD: u64 = 0x89;
    /// MONITOR or MONITORX.
    pub const MONITOR: u64 = 0x8A;
    /// MWAIT or MWAITX.
    pub const MWAIT: u64 = 0x8B;
    /// MWAIT with the monitor armed.
    pub const MWAIT_CONDITIONAL: u64 = 0x8C;
    /// XSETBV.
    pub const XSETBV: u64 = 0x8D;
    /// RDPRU.
    pub const RDPRU: u64 = 0x8E;
    /// EFER was written; after the write.
    pub const EFER_WRITE_TRAP: u64 = 0x8F;
    /// CR0 was written, after the write; CR1 to CR15 follow.
    pub const CR0_WRITE_TRAP: u64 = 0x90;
    /// CR15 was written.
    pub const CR15_WRITE_TRAP: u64 = 0x9F;
    /// INVLPGB.
    pub const INVLPGB: u64 = 0xA0;
    /// An illegal INVLPGB.
    pub const INVLPGB_ILLEGAL: u64 = 0xA1;
    /// INVPCID.
    pub const INVPCID: u64 = 0xA2;
    /// MCOMMIT.
    pub const MCOMMIT: u64 = 0xA3;
    /// TLBSYNC.
    pub const TLBSYNC: u64 = 0xA4;
    /// The bus-lock threshold was reached.
    pub const BUS_LOCK: u64 = 0xA5;
    /// HLT with no virtual interrupt pending.
    pub const IDLE_HLT: u64 = 0xA6;
    /// A nested page fault: EXITINFO1 is the error code ([`crate::svm::npf`]),
    /// EXITINFO2 the guest-physical address.
    pub const NPF: u64 = 0x400;
    /// An IPI that AVIC could not deliver.
    pub const AVIC_INCOMPLETE_IPI: u64 = 0x401;
    /// An APIC access that AVIC does not accelerate.
    pub const AVIC_NOACCEL: u64 = 0x402;
    /// VMGEXIT.
    pub const VMGEXIT: u64 = 0x403;
    /// The block is not valid: VMRUN did not enter the guest.
    pub const INVALID: u64 = u64::MAX;
    /// The encrypted guest's state is in use.
    pub const BUSY: u64 = u64::MAX - 1;
    /// The sibling core must be idle.
    pub const IDLE_REQUIRED: u64 = u64::MAX - 2;
    /// The performance counters' state is not valid.
    pub const INVALID_PMC: u64 = u64::MAX - 3;
}

/// Bits of the intercept vector at 00CH. Bit n has exit code 60H + n.
pub mod misc1 {
    /// External interrupts.
    pub const INTR: u32 = 1;
    /// NMIs.
    pub const NMI: u32 = 1 << 1;
    /// SMIs.
    pub const SMI: u32 = 1 << 2;
    /// INIT.
    pub const INIT: u32 = 1 << 3;
    /// Virtual interrupts.
    pub const VINTR: u32 = 1 << 4;
    /// Writes of CR0 that change other bits than TS and MP.
    pub const CR0_SEL_WRITE: u32 = 1 << 5;
    /// SIDT.
    pub const IDTR_READ: u32 = 1 << 6;
    /// SGDT.
    pub const GDTR_READ: u32 = 1 << 7;
    /// SLDT.
    pub const LDTR_READ: u32 = 1 << 8;
    /// STR.
    pub const TR_READ: u32 = 1 << 9;
    /// LIDT.
    pub const IDTR_WRITE: u32 = 1 << 10;
    /// LGDT.
    pub const GDTR_WRITE: u32 = 1 << 11;
    /// LLDT.
    pub const LDTR_WRITE: u32 = 1 << 12;
    /// LTR.
    pub const TR_WRITE: u32 = 1 << 13;
    /// RDTSC.
    pub const RDTSC: u32 = 1 << 14;
    /// RDPMC.
    pub const RDPMC: u32 = 1 << 15;
    /// PUSHF.
    pub const PUSHF: u32 = 1 << 16;
    /// POPF.
    pub const POPF: u32 = 1 << 17;
    /// CPUID.
    pub const CPUID: u32 = 1 << 18;
    /// RSM.
    pub const RSM: u32 = 1 << 19;
    /// IRET.
    pub const IRET: u32 = 1 << 20;
    /// INT n.
    pub const SWINT: u32 = 1 << 21;
    /// INVD.
    pub const INVD: u32 = 1 << 22;
    /// PAUSE.
    pub const PAUSE: u32 = 1 << 23;
    /// HLT.
    pub const HLT: u32 = 1 << 24;
    /// INVLPG.
    pub const INVLPG: u32 = 1 << 25;
    /// INVLPGA.
    pub const INVLPGA: u32 = 1 << 26;
    /// I/O, by the I/O permissions map.
    pub const IOIO: u32 = 1 << 27;
    /// RDMSR and WRMSR, by the MSR permissions map.
    pub const MSR: u32 = 1 << 28;
    /// Task switches.
    pub const TASK_SWITCH: u32 = 1 << 29;
    /// FERR freeze.
    pub const FERR_FREEZE: u32 = 1 << 30;
    /// Shutdown.
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Bits of the intercept vector at 010H. Bit n has exit code 80H + n.
pub mod misc2 {
    /// VMRUN; VMRUN refuses a block that does not intercept it.
    pub const VMRUN: u32 = 1;
    /// VMMCALL.
    pub const VMMCALL: u32 = 1 << 1;
    /// VMLOAD.
    pub const VMLOAD: u32 = 1 << 2;
    /// VMSAVE.
    pub const VMSAVE: u32 = 1 << 3;
    /// STGI.
    pub const STGI: u32 = 1 << 4;
    /// CLGI.
    pub const CLGI: u32 = 1 << 5;
    /// SKINIT.
    pub const SKINIT: u32 = 1 << 6;
    /// RDTSCP.
    pub const RDTSCP: u32 = 1 << 7;
    /// INT1.
    pub const ICEBP: u32 = 1 << 8;
    /// WBINVD and WBNOINVD.
    pub const WBINVD: u32 = 1 << 9;
    /// MONITOR and MONITORX.
    pub const MONITOR: u32 = 1 << 10;
    /// MWAIT and MWAITX.
    pub const MWAIT: u32 = 1 << 11;
    /// MWAIT and MWAITX with the monitor armed.
    pub const MWAIT_CONDITIONAL: u32 = 1 << 12;
    /// XSETBV.
    pub const XSETBV: u32 = 1 << 13;
    /// RDPRU.
    pub const RDPRU: u32 = 1 << 14;
    /// Writes of EFER, after the write.
    pub const EFER_WRITE_TRAP: u32 = 1 << 15;
    /// Writes of CR0, after the write; CR1 to CR15 follow.
    pub const CR0_WRITE_TRAP: u32 = 1 << 16;
}

/// Bits of the intercept vector at 014H. Bit n has exit code A0H + n.
pub mod misc3 {
    /// INVLPGB.
    pub const INVLPGB: u32 = 1;
    /// Illegal INVLPGB.
    pub const INVLPGB_ILLEGAL: u32 = 1 << 1;
    /// INVPCID.
    pub const INVPCID: u32 = 1 << 2;
    /// MCOMMIT.
    pub const MCOMMIT: u32 = 1 << 3;
    /// TLBSYNC.
    pub const TLBSYNC: u32 = 1 << 4;
    /// Bus locks above the threshold.
    pub const BUS_LOCK: u32 = 1 << 5;
    /// HLT with no virtual interrupt pending.
    pub const IDLE_HLT: u32 = 1 << 6;
}

/// What the entry does to the translation caches (AMD APM vol. 2, "TLB Control").
pub mod tlb {
    /// Nothing.
    pub const KEEP: u8 = 0;
    /// All entries of all address spaces.
    pub const FLUSH_ALL: u8 = 1;
    /// The entries of this guest's ASID; needs FlushByAsid.
    pub const FLUSH_ASID: u8 = 3;
    /// Those of them that are not global; needs FlushByAsid.
    pub const FLUSH_ASID_NON_GLOBAL: u8 = 7;
}

/// The word at 060H (AMD APM vol. 2, "Virtualizing APIC.TPR" and "Injecting
/// Virtual (INTR) Interrupts").
pub mod virtual_interrupt {
    /// The virtual task priority.
    pub const TPR: u64 = 0xFF;
    /// A virtual interrupt is pending.
    pub const IRQ: u64 = 1 << 8;
    /// The virtual global interrupt flag.
    pub const GIF: u64 = 1 << 9;
    /// A virtual NMI is pending.
    pub const NMI: u64 = 1 << 11;
    /// Virtual NMIs are masked.
    pub const NMI_MASK: u64 = 1 << 12;
    /// First bit of the virtual interrupt's priority.
    pub const PRIORITY_SHIFT: u32 = 16;
    /// The task priority does not matter.
    pub const IGNORE_TPR: u64 = 1 << 20;
    /// The guest's RFLAGS.IF does not mask physical interrupts; the host's does.
    pub const MASKING: u64 = 1 << 24;
    /// Virtual global interrupt flag on.
    pub const GIF_ENABLE: u64 = 1 << 25;
    /// Virtual NMIs on.
    pub const NMI_ENABLE: u64 = 1 << 26;
    /// x2AVIC on.
    pub const X2AVIC_ENABLE: u64 = 1 << 30;
    /// AVIC on.
    pub const AVIC_ENABLE: u64 = 1 << 31;
    /// First bit of the virtual interrupt's vector.
    pub const VECTOR_SHIFT: u32 = 32;
}

/// The word at 068H (AMD APM vol. 2, "Interrupt Shadows").
pub mod shadow {
    /// The guest is in an interrupt shadow: after STI, MOV SS or POP SS.
    pub const SHADOW: u64 = 1;
    /// The guest's RFLAGS.IF, saved by the exit and not used by VMRUN.
    pub const GUEST_INTERRUPT_MASK: u64 = 1 << 1;
}

/// The word at 090H (AMD APM vol. 2, "Enabling Nested Paging").
pub mod nested {
    /// Nested paging.
    pub const NP_ENABLE: u64 = 1;
    /// Encrypted guest.
    pub const SEV: u64 = 1 << 1;
    /// Encrypted guest state.
    pub const SEV_ES: u64 = 1 << 2;
    /// Guest mode execute trap: the guest's supervisor cannot fetch from pages
    /// that the nested tables call user. Ignored by processors without it.
    pub const GMET: u64 = 1 << 3;
    /// Supervisor shadow stacks are checked against the nested tables.
    pub const SSS_CHECK: u64 = 1 << 4;
    /// Virtual transparent encryption.
    pub const VTE: u64 = 1 << 5;
    /// The guest's tables may be read-only.
    pub const READ_ONLY_TABLES: u64 = 1 << 6;
    /// INVLPGB and TLBSYNC without an exit.
    pub const INVLPGB: u64 = 1 << 7;
}

/// The word at 0B8H.
pub mod lbr {
    /// The guest has branch records of its own.
    pub const LBR: u64 = 1;
    /// VMLOAD and VMSAVE without an exit.
    pub const VMLOAD_VMSAVE: u64 = 1 << 1;
    /// Virtualized instruction-based sampling.
    pub const IBS: u64 = 1 << 2;
    /// Virtualized performance counters.
    pub const PMC: u64 = 1 << 3;
}

/// What has not been changed in the block since the last exit (AMD APM vol. 2,
/// "VMCB Clean Bits"). 0 is always right.
pub mod clean {
    /// Intercepts, TSC offset, pause filter.
    pub const INTERCEPTS: u64 = 1;
    /// Addresses of the permission maps.
    pub const PERMISSION_MAPS: u64 = 1 << 1;
    /// The ASID.
    pub const ASID: u64 = 1 << 2;
    /// The word at 060H.
    pub const TPR: u64 = 1 << 3;
    /// Nested paging: N_CR3 and G_PAT.
    pub const NESTED_PAGING: u64 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CONTROL_REGISTERS: u64 = 1 << 5;
    /// DR6, DR7.
    pub const DEBUG_REGISTERS: u64 = 1 << 6;
    /// GDTR, IDTR.
    pub const DESCRIPTOR_TABLES: u64 = 1 << 7;
    /// CS, DS, SS, ES and the privilege level.
    pub const SEGMENTS: u64 = 1 << 8;
    /// CR2.
    pub const CR2: u64 = 1 << 9;
    /// DBGCTL and the branch records.
    pub const LBR: u64 = 1 << 10;
    /// AVIC.
    pub const AVIC: u64 = 1 << 11;
    /// S_CET, SSP, ISST_ADDR.
    pub const CET: u64 = 1 << 12;
}

/// Layout of EVENTINJ and EXITINTINFO (AMD APM vol. 2, "Event Injection" and
/// "EXITINTINFO").
pub mod event {
    /// The vector.
    pub const VECTOR: u64 = 0xFF;
    /// First bit of the type.
    pub const TYPE_SHIFT: u32 = 8;
    /// The type's bits.
    pub const TYPE: u64 = 7 << TYPE_SHIFT;
    /// External or virtual interrupt.
    pub const INTR: u64 = 0;
    /// NMI; the vector is ignored. An injected one does not block further NMIs.
    pub const NMI: u64 = 2 << TYPE_SHIFT;
    /// Exception, be it a fault, a trap, INT1, INT3 or INTO.
    pub const EXCEPTION: u64 = 3 << TYPE_SHIFT;
    /// INT n.
    pub const SOFTWARE: u64 = 4 << TYPE_SHIFT;
    /// The upper half is an error code.
    pub const HAS_ERROR_CODE: u64 = 1 << 11;
    /// There is an event.
    pub const VALID: u64 = 1 << 31;
    /// First bit of the error code.
    pub const ERROR_CODE_SHIFT: u32 = 32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_packed_as_the_block_has_them() {
        for (rights, packed) in [
            (0x0020_9B00, 0x29B), // 64-bit code, ring 0
            (0x0020_FB00, 0x2FB), // 64-bit code, ring 3
            (0x00C0_9300, 0xC93), // data, ring 0
            (0x00C0_F300, 0xCF3), // data, ring 3
            (0x0000_8B00, 0x08B), // busy TSS
            (0x0000_8200, 0x082), // LDT
            (0x0040_9300, 0x493), // small stack
            (0x00FF_FFFF, 0xFFF), // what LAR leaves undefined does not count
            (0xFF0F_00FF, 0),
        ] {
            assert_eq!(attributes(rights), packed, "{rights:#x}");
        }
    }

    #[test]
    fn packing_loses_nothing() {
        for packed in 0..=0xFFF {
            assert_eq!(attributes(rights(packed)), packed);
        }
        assert_eq!(rights(0xF29B), 0x0020_9B00, "only twelve bits count");
    }

    #[test]
    fn intercepts_stand_where_their_exit_codes_say() {
        for (bit, number) in [
            (misc1::INTR, code::INTR),
            (misc1::NMI, code::NMI),
            (misc1::SMI, code::SMI),
            (misc1::INIT, code::INIT),
            (misc1::VINTR, code::VINTR),
            (misc1::CR0_SEL_WRITE, code::CR0_SEL_WRITE),
            (misc1::IDTR_READ, code::IDTR_READ),
            (misc1::GDTR_READ, code::GDTR_READ),
            (misc1::LDTR_READ, code::LDTR_READ),
            (misc1::TR_READ, code::TR_READ),
            (misc1::IDTR_WRITE, code::IDTR_WRITE),
            (misc1::GDTR_WRITE, code::GDTR_WRITE),
            (misc1::LDTR_WRITE, code::LDTR_WRITE),
            (misc1::TR_WRITE, code::TR_WRITE),
            (misc1::RDTSC, code::RDTSC),
            (misc1::RDPMC, code::RDPMC),
            (misc1::PUSHF, code::PUSHF),
            (misc1::POPF, code::POPF),
            (misc1::CPUID, code::CPUID),
            (misc1::RSM, code::RSM),
            (misc1::IRET, code::IRET),
            (misc1::SWINT, code::SWINT),
            (misc1::INVD, code::INVD),
            (misc1::PAUSE, code::PAUSE),
            (misc1::HLT, code::HLT),
            (misc1::INVLPG, code::INVLPG),
            (misc1::INVLPGA, code::INVLPGA),
            (misc1::IOIO, code::IOIO),
            (misc1::MSR, code::MSR),
            (misc1::TASK_SWITCH, code::TASK_SWITCH),
            (misc1::FERR_FREEZE, code::FERR_FREEZE),
            (misc1::SHUTDOWN, code::SHUTDOWN),
        ] {
            assert_eq!(u64::from(bit.trailing_zeros()), number - 0x60);
        }
        for (bit, number) in [
            (misc2::VMRUN, code::VMRUN),
            (misc2::VMMCALL, code::VMMCALL),
            (misc2::VMLOAD, code::VMLOAD),
            (misc2::VMSAVE, code::VMSAVE),
            (misc2::STGI, code::STGI),
            (misc2::CLGI, code::CLGI),
            (misc2::SKINIT, code::SKINIT),
            (misc2::RDTSCP, code::RDTSCP),
            (misc2::ICEBP, code::ICEBP),
            (misc2::WBINVD, code::WBINVD),
            (misc2::MONITOR, code::MONITOR),
            (misc2::MWAIT, code::MWAIT),
            (misc2::MWAIT_CONDITIONAL, code::MWAIT_CONDITIONAL),
            (misc2::XSETBV, code::XSETBV),
            (misc2::RDPRU, code::RDPRU),
            (misc2::EFER_WRITE_TRAP, code::EFER_WRITE_TRAP),
            (misc2::CR0_WRITE_TRAP, code::CR0_WRITE_TRAP),
        ] {
            assert_eq!(u64::from(bit.trailing_zeros()), number - 0x80);
        }
        for (bit, number) in [
            (misc3::INVLPGB, code::INVLPGB),
            (misc3::INVLPGB_ILLEGAL, code::INVLPGB_ILLEGAL),
            (misc3::INVPCID, code::INVPCID),
            (misc3::MCOMMIT, code::MCOMMIT),
            (misc3::TLBSYNC, code::TLBSYNC),
            (misc3::BUS_LOCK, code::BUS_LOCK),
            (misc3::IDLE_HLT, code::IDLE_HLT),
        ] {
            assert_eq!(u64::from(bit.trailing_zeros()), number - 0xA0);
        }
    }
}
