//! The virtual processor of one core: the VMCS, filled from the running state,
//! read and written by the exit handlers.
//!
//! All functions need a current VMCS, that is root mode on a core between its
//! VMPTRLD and its VMCLEAR.

use ept::addr::Hpa;
use ept::entry::EptFormat;
use ept::space::Space;
use x86::msr;

use super::Vmx;
use super::caps::{self, Controls};
use super::entry;
use super::fields::{self, control, guest, host, ro};
use crate::backend::{Backend, GuestState, Nested};
use crate::emulate::cr;
use crate::host::paging;
use crate::hypervisor::Hypervisor;
use crate::percpu::Core;
use crate::seeded::{self, Planted};
use crate::{event, instr};

/// Interruptibility: blocking by STI.
pub const BLOCKED_BY_STI: u64 = 1;
/// Interruptibility: blocking by MOV SS.
pub const BLOCKED_BY_MOV_SS: u64 = 1 << 1;
/// Interruptibility: blocking by NMI.
pub const BLOCKED_BY_NMI: u64 = 1 << 3;

/// Activity state: halted.
pub const ACTIVITY_ACTIVE: u64 = 0;
/// Activity state: waiting for a start-up IPI.
pub const ACTIVITY_WAIT_FOR_SIPI: u64 = 3;

/// IA32_S_CET.
pub const S_CET: u32 = 0x6A2;
/// IA32_INTERRUPT_SSP_TABLE_ADDR.
pub const INTERRUPT_SSP_TABLE: u32 = 0x6A8;

const CR4_VMXE: u64 = 1 << 13;
const CR4_CET: u64 = 1 << 23;
/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_RF: u64 = 1 << 16;
const DEBUGCTL_BTF: u64 = 1 << 1;

/// Reads a field.
#[inline]
#[must_use]
pub fn read(field: u32) -> u64 {
    // SAFETY: the module's contract: a VMCS is current.
    unsafe { instr::vmread(field) }
}

/// Writes a field.
#[inline]
pub fn write(field: u32, value: u64) {
    // SAFETY: the module's contract: a VMCS is current; values are checked by the
    // processor at the next entry.
    unsafe { instr::vmwrite(field, value) };
}

fn change(field: u32, set: u64, clear: u64) {
    write(field, (read(field) | set) & !clear);
}

/// Reads an MSR that every processor with VMX has.
fn existing(index: u32) -> u64 {
    // SAFETY: CPL 0 by the module's contract; the MSR exists.
    unsafe { instr::rdmsr(index) }
}

/// One segment's state from its selector and descriptor.
fn segment(selector: u16, base: u64) -> (u64, u64, u64, u64) {
    const UNUSABLE: u64 = 1 << 16;
    if selector & !7 == 0 {
        return (u64::from(selector), base, 0, UNUSABLE);
    }
    match (instr::lar(selector), instr::lsl(selector)) {
        (Some(rights), Some(limit)) => (
            u64::from(selector),
            base,
            u64::from(limit),
            u64::from(rights >> 8 & 0xF0FF),
        ),
        _ => (u64::from(selector), base, 0, UNUSABLE),
    }
}

/// The base in a descriptor of the loaded GDT: a system descriptor of 16 bytes.
///
/// # Safety
/// The selector is that of a valid system descriptor in the loaded GDT.
unsafe fn system_base(selector: u16) -> u64 {
    let gdt = instr::sgdt();
    let base = gdt.base;
    let address = base + u64::from(selector & !7);
    // SAFETY: the caller's promise: the descriptor lies in the GDT.
    let low = unsafe { (address as *const u64).read_unaligned() };
    // SAFETY: as above, its second half.
    let high = unsafe { ((address + 8) as *const u64).read_unaligned() };
    low >> 16 & 0xFF_FFFF | (low >> 56 & 0xFF) << 24 | high << 32
}

/// Fills the current VMCS with the state of this core, which becomes the guest's,
/// and with the state of root mode. RSP and RIP are written by the launch stub.
///
/// # Safety
/// The core's VMCS is current, interrupts are off, the core's region is complete.
pub unsafe fn fill(core: &Core, hypervisor: &Hypervisor, rflags: u64, cr0_before: u64) {
    controls(hypervisor);
    // SAFETY: the caller's promise.
    unsafe { guest_state(hypervisor, rflags, cr0_before) };
    // SAFETY: the caller's promise.
    unsafe { host_state(core, hypervisor) };
}

fn controls(hypervisor: &Hypervisor) {
    let Controls {
        pin,
        primary,
        secondary,
        exit,
        launch_entry,
        ..
    } = hypervisor.vmx.controls;
    write(control::PINBASED_EXEC_CONTROLS, pin.into());
    write(control::PRIMARY_PROCBASED_EXEC_CONTROLS, primary.into());
    write(control::SECONDARY_PROCBASED_EXEC_CONTROLS, secondary.into());
    write(control::VMEXIT_CONTROLS, exit.into());
    write(control::VMENTRY_CONTROLS, launch_entry.into());
    write(control::EXCEPTION_BITMAP, 0);
    write(control::PAGE_FAULT_ERR_CODE_MASK, 0);
    write(control::PAGE_FAULT_ERR_CODE_MATCH, 0);
    write(control::CR3_TARGET_COUNT, 0);
    write(control::VMEXIT_MSR_STORE_COUNT, 0);
    write(control::VMEXIT_MSR_LOAD_COUNT, 0);
    write(control::VMENTRY_MSR_LOAD_COUNT, 0);
    write(control::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
    write(control::TSC_OFFSET_FULL, 0);
    write(
        control::MSR_BITMAPS_ADDR_FULL,
        hypervisor.msr_bitmap.as_u64(),
    );
    write(control::EPTP_FULL, hypervisor.vmx.eptp);
    // VPIDs are the core's own: the same number on each core is no sharing.
    write(control::VPID, 1);
    write(control::XSS_EXITING_BITMAP_FULL, 0);
    write(control::ENCLS_EXITING_BITMAP_FULL, 0);
}

/// # Safety
/// A VMCS is current, interrupts are off.
unsafe fn guest_state(hypervisor: &Hypervisor, rflags: u64, cr0_before: u64) {
    let fs_base = existing(msr::IA32_FS_BASE);
    let gs_base = existing(msr::IA32_GS_BASE);
    let efer = existing(msr::IA32_EFER);
    let pat = existing(msr::IA32_PAT);
    let tr = instr::tr();
    let ldtr = instr::ldtr();
    // SAFETY: TR holds a valid system selector in 64-bit mode.
    let tr_base = unsafe { system_base(tr) };
    let ldtr_base = if ldtr & !7 == 0 {
        0
    } else {
        // SAFETY: LDTR holds a valid system selector.
        unsafe { system_base(ldtr) }
    };
    for (selector, base, fields) in [
        (instr::es(), 0, guest::ES_SELECTOR),
        (instr::cs(), 0, guest::CS_SELECTOR),
        (instr::ss(), 0, guest::SS_SELECTOR),
        (instr::ds(), 0, guest::DS_SELECTOR),
        (instr::fs(), fs_base, guest::FS_SELECTOR),
        (instr::gs(), gs_base, guest::GS_SELECTOR),
        (ldtr, ldtr_base, guest::LDTR_SELECTOR),
        (tr, tr_base, guest::TR_SELECTOR),
    ] {
        // The four fields of a segment have the same distance in each group
        // (appendix B.1, "16-Bit Guest-State Fields", and following).
        let offset = fields - guest::ES_SELECTOR;
        let (selector, base, limit, rights) = segment(selector, base);
        write(fields, selector);
        write(guest::ES_BASE + offset, base);
        write(guest::ES_LIMIT + offset, limit);
        write(guest::ES_ACCESS_RIGHTS + offset, rights);
    }
    let gdt = instr::sgdt();
    let idt = instr::sidt();
    write(guest::GDTR_BASE, gdt.base);
    write(guest::GDTR_LIMIT, gdt.limit.into());
    write(guest::IDTR_BASE, idt.base);
    write(guest::IDTR_LIMIT, idt.limit.into());

    // SAFETY: reads a register at CPL 0.
    let cr0 = unsafe { instr::cr0() };
    // SAFETY: reads a register at CPL 0.
    let cr3 = unsafe { instr::cr3() };
    // SAFETY: reads a register at CPL 0.
    let cr4 = unsafe { instr::cr4() };
    // SAFETY: reads a register at CPL 0.
    let dr7 = unsafe { instr::dr7() };
    write(guest::CR0, cr0 | hypervisor.vmx.cr0_fixed);
    write(guest::CR3, cr3);
    write(guest::CR4, cr4 | CR4_VMXE);
    // Of CR0 only what VMX fixes is owned: NE. PE and PG are the guest's
    // (unrestricted guest). Of CR4: VMXE and SMXE.
    write(control::CR0_GUEST_HOST_MASK, hypervisor.vmx.cr0_fixed);
    write(control::CR0_READ_SHADOW, cr0_before);
    write(control::CR4_GUEST_HOST_MASK, cr::CR4_OWNED);
    write(
        control::CR4_READ_SHADOW,
        if seeded::is(Planted::ShowVmxe) {
            cr4 | CR4_VMXE
        } else {
            cr4 & !CR4_VMXE
        },
    );
    write(guest::DR7, dr7);
    write(guest::RFLAGS, rflags);

    write(guest::LINK_PTR_FULL, u64::MAX);
    write(guest::IA32_EFER_FULL, efer);
    write(guest::IA32_PAT_FULL, pat);
    // Replaced by the first exit, see `Controls::launch_entry`.
    write(guest::IA32_DEBUGCTL_FULL, 0);
    write(guest::IA32_SYSENTER_CS, existing(msr::IA32_SYSENTER_CS));
    write(guest::IA32_SYSENTER_ESP, existing(msr::IA32_SYSENTER_ESP));
    write(guest::IA32_SYSENTER_EIP, existing(msr::IA32_SYSENTER_EIP));
    if hypervisor.vmx.controls.cet {
        // Kernel shadow stacks are off (a start with them is refused), so the
        // shadow-stack pointer is 0.
        write(fields::GUEST_S_CET, existing(S_CET));
        write(fields::GUEST_SSP, 0);
        write(fields::GUEST_ISST, existing(INTERRUPT_SSP_TABLE));
    }
    write(guest::INTERRUPTIBILITY_STATE, 0);
    write(guest::ACTIVITY_STATE, ACTIVITY_ACTIVE);
    write(guest::PENDING_DBG_EXCEPTIONS, 0);
}

/// # Safety
/// A VMCS is current, the core's region is complete.
unsafe fn host_state(core: &Core, hypervisor: &Hypervisor) {
    let base = core::ptr::from_ref::<Core>(core) as u64;
    write(host::CS_SELECTOR, (instr::cs() & !7).into());
    write(host::SS_SELECTOR, (instr::ss() & !7).into());
    write(host::DS_SELECTOR, 0);
    write(host::ES_SELECTOR, 0);
    write(host::FS_SELECTOR, 0);
    write(host::GS_SELECTOR, 0);
    write(host::TR_SELECTOR, (instr::tr() & !7).into());
    // SAFETY: reads a register at CPL 0.
    let cr0 = unsafe { instr::cr0() };
    // SAFETY: reads a register at CPL 0.
    let cr4 = unsafe { instr::cr4() };
    let efer = existing(msr::IA32_EFER);
    write(host::CR0, cr0 | hypervisor.vmx.cr0_fixed);
    write(host::CR3, hypervisor.host_cr3);
    write(host::CR4, CR4_VMXE | paging::cr4(cr4));
    write(host::FS_BASE, 0);
    write(host::GS_BASE, base);
    write(host::TR_BASE, &raw const core.descriptors.tss as u64);
    write(host::GDTR_BASE, &raw const core.descriptors.gdt as u64);
    write(host::IDTR_BASE, hypervisor.idt);
    write(host::RSP, core.stack_pointer());
    write(host::RIP, entry::exit_address());
    write(host::IA32_SYSENTER_CS, 0);
    write(host::IA32_SYSENTER_ESP, 0);
    write(host::IA32_SYSENTER_EIP, 0);
    // LMA, LME, NXE: no SYSCALL, nothing of the guest's.
    write(host::IA32_EFER_FULL, efer & 0xD00);
    // Entry 0 write-back, entry 3 uncached, as the windows assume.
    write(host::IA32_PAT_FULL, 0x0007_0406_0007_0406);
    if hypervisor.vmx.controls.cet {
        write(fields::HOST_S_CET, 0);
        write(fields::HOST_SSP, 0);
        write(fields::HOST_ISST, 0);
    }
}

/// The first exit has saved the debug controls: from now on every entry loads
/// them.
pub fn load_debug_controls() {
    change(control::VMENTRY_CONTROLS, caps::ENTRY_LOAD_DEBUG.into(), 0);
}

/// Invalidates everything derived from the shared tables on this core.
pub fn invalidate(core: &Core) {
    // SAFETY: root mode; the processor has INVEPT, checked before the launch.
    unsafe { instr::invept_single(core.hypervisor().vmx.eptp) };
}

/// Exits as soon as the guest can take an NMI.
///
/// # Safety
/// No other access to the primary controls is under way on this core.
pub unsafe fn open_nmi_window() {
    change(
        control::PRIMARY_PROCBASED_EXEC_CONTROLS,
        caps::PRIMARY_NMI_WINDOW.into(),
        0,
    );
}

/// Closes the NMI window.
pub fn close_nmi_window() {
    change(
        control::PRIMARY_PROCBASED_EXEC_CONTROLS,
        0,
        caps::PRIMARY_NMI_WINDOW.into(),
    );
}

/// Root mode cannot go on: makes the guest take a double fault with all pages
/// unwatched.
///
/// # Safety
/// Root mode with a current VMCS; the interrupted code is abandoned.
pub unsafe fn give_up(core: &Core) -> ! {
    core.hypervisor().abandon();
    Vmx::use_shared(core);
    write(
        control::VMENTRY_INTERRUPTION_INFO_FIELD,
        event::Event::DOUBLE_FAULT.info(),
    );
    write(control::VMENTRY_EXCEPTION_ERR_CODE, 0);
    // SAFETY: the registers lie where the stub put them.
    unsafe { entry::enter_after_fault(core.registers()) }
}

/// Moves RIP past the instruction that exited, with what the processor does at
/// an instruction's end.
pub fn advance(core: &Core) {
    let length = if seeded::is(Planted::AdvanceByTwo) {
        2
    } else {
        read(ro::VMEXIT_INSTRUCTION_LEN)
    };
    Vmx::advance_by(core, length);
}

/// EPTP of tables with the given root.
#[must_use]
pub fn eptp(root: Hpa) -> u64 {
    ept::entry::eptp(root, false)
}

impl Backend for Vmx {
    type Format = EptFormat;

    #[inline]
    fn nested(hypervisor: &Hypervisor) -> Option<&Space<'static, EptFormat>> {
        match &hypervisor.space {
            Some(Nested::Ept(space)) => Some(space),
            _ => None,
        }
    }

    #[inline]
    fn guest(core: &Core) -> GuestState {
        GuestState {
            rip: read(guest::RIP),
            code_base: code_base(core),
            rsp: read(guest::RSP),
            rflags: read(guest::RFLAGS),
            cr0: read(guest::CR0),
            cr3: read(guest::CR3),
            cr4: cr4(),
            efer: read(guest::IA32_EFER_FULL),
            cpl: Self::cpl(core),
        }
    }

    /// DPL of SS.
    #[inline]
    fn cpl(_: &Core) -> u8 {
        (read(guest::SS_ACCESS_RIGHTS) >> 5 & 3) as u8
    }

    /// CS.L = 1 and paging on.
    #[inline]
    fn long_mode(_: &Core) -> bool {
        read(guest::CS_ACCESS_RIGHTS) & 1 << 13 != 0
    }

    #[inline]
    fn has_breakpoints(_: &Core) -> bool {
        read(guest::DR7) & 0xFF != 0
    }

    #[inline]
    fn delivering(_: &Core) -> bool {
        read(ro::IDT_VECTORING_INFO) & 1 << 31 != 0
    }

    #[inline]
    /// Blocking by STI and MOV SS ends, RFLAGS.RF is cleared, a trap flag becomes
    /// a pending single step.
    fn advance_by(core: &Core, length: u64) {
        let mut rip = read(guest::RIP).wrapping_add(length);
        if !Self::long_mode(core) {
            rip &= 0xFFFF_FFFF;
        }
        write(guest::RIP, rip);
        let blocking = read(guest::INTERRUPTIBILITY_STATE);
        if blocking & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS) != 0
            && !seeded::is(Planted::KeepStiBlocking)
        {
            write(
                guest::INTERRUPTIBILITY_STATE,
                blocking & !(BLOCKED_BY_STI | BLOCKED_BY_MOV_SS),
            );
        }
        let flags = read(guest::RFLAGS);
        if flags & RFLAGS_RF != 0 {
            write(guest::RFLAGS, flags & !RFLAGS_RF);
        }
        if flags & RFLAGS_TF != 0
            && read(guest::IA32_DEBUGCTL_FULL) & DEBUGCTL_BTF == 0
            && !seeded::is(Planted::ForgetSingleStep)
        {
            // Pending debug exceptions: BS (Intel SDM vol. 3, "Checks on Guest
            // Non-Register State").
            change(guest::PENDING_DBG_EXCEPTIONS, 1 << 14, 0);
        }
    }

    #[inline]
    fn use_path(_: &Core, root: Hpa) {
        let eptp = eptp(root);
        // SAFETY: root mode; INVEPT exists. The path's tables had other content
        // at its last use.
        unsafe { instr::invept_single(eptp) };
        write(control::EPTP_FULL, eptp);
    }

    #[inline]
    /// Every refusal is a leaf's own.
    fn stop_trapping(_: &Core) {}

    fn use_shared(core: &Core) {
        write(control::EPTP_FULL, core.hypervisor().vmx.eptp);
    }

    /// With the monitor trap flag and interrupts allowed, blocking by STI keeps them
    /// out of that one instruction: the step would otherwise end after an interrupt
    /// handler's first instruction on some processors.
    ///
    /// With the trap flag instead, blocking by STI or MOV SS would make a debug
    /// exception pending before the instruction, so RFLAGS.IF is cleared for it, and
    /// branch stepping is off. Every exception exits, so that none is delivered with
    /// these flags on its stack.
    fn arm_step(core: &Core) {
        let step = &core.state.step;
        let mtf = core.hypervisor().features.mtf;
        let flags = read(guest::RFLAGS);
        let blocking = read(guest::INTERRUPTIBILITY_STATE);
        step.flags.set(flags);
        if mtf {
            if flags & RFLAGS_IF != 0
                && blocking & BLOCKED_BY_MOV_SS == 0
                && !Self::delivering(core)
            {
                write(guest::INTERRUPTIBILITY_STATE, blocking | BLOCKED_BY_STI);
            }
            change(
                control::PRIMARY_PROCBASED_EXEC_CONTROLS,
                caps::PRIMARY_MTF.into(),
                0,
            );
            return;
        }
        let debugctl = read(guest::IA32_DEBUGCTL_FULL);
        step.debugctl.set(debugctl);
        write(guest::IA32_DEBUGCTL_FULL, debugctl & !DEBUGCTL_BTF);
        write(guest::RFLAGS, flags & !RFLAGS_IF | RFLAGS_TF);
        write(
            guest::INTERRUPTIBILITY_STATE,
            blocking & !(BLOCKED_BY_STI | BLOCKED_BY_MOV_SS),
        );
        write(control::EXCEPTION_BITMAP, 0xFFFF_FFFF);
    }

    fn disarm_step(core: &Core) {
        let step = &core.state.step;
        let mtf = core.hypervisor().features.mtf;
        if seeded::is(Planted::StepForEver) {
            return;
        }
        if mtf {
            change(
                control::PRIMARY_PROCBASED_EXEC_CONTROLS,
                0,
                caps::PRIMARY_MTF.into(),
            );
            return;
        }
        let borrowed = RFLAGS_TF | RFLAGS_IF;
        let now = read(guest::RFLAGS);
        write(guest::RFLAGS, now & !borrowed | step.flags.get() & borrowed);
        write(guest::IA32_DEBUGCTL_FULL, step.debugctl.get());
        write(control::EXCEPTION_BITMAP, 0);
    }
}

/// What is to be added to RIP for its linear address.
#[must_use]
#[inline]
pub fn code_base(core: &Core) -> u64 {
    if Vmx::long_mode(core) {
        0
    } else {
        read(guest::CS_BASE)
    }
}

/// CR4 as the guest reads it.
#[must_use]
#[inline]
pub fn cr4() -> u64 {
    read(guest::CR4) & !CR4_VMXE
}

/// A fault at this instruction: RFLAGS.RF is set in what is pushed.
pub fn set_resume_flag() {
    change(guest::RFLAGS, RFLAGS_RF, 0);
}

/// Whether kernel shadow stacks could be active.
#[must_use]
pub fn shadow_stacks_active(cr4: u64, s_cet: u64) -> bool {
    cr4 & CR4_CET != 0 && s_cet & 1 != 0
}
