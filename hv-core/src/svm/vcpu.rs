//! The virtual processor of one core: the VMCB, filled from the running state,
//! read and written by the exit handlers.
//!
//! All functions are for the core that owns the VMCB, in root mode or before it is
//! launched.

use ept::addr::Hpa;
use ept::entry::NptFormat;
use ept::space::Space;
use x86::msr;

use super::entry;
use super::fields::{self, Segment, Vmcb, event as layout, misc1, misc2, nested, shadow, tlb};
use super::{Svm, VMCB, interrupted};
use crate::backend::{Backend, GuestState, Nested};
use crate::event::Event;
use crate::hypervisor::Hypervisor;
use crate::instr;
use crate::percpu::Core;
use crate::seeded::{self, Planted};

pub use super::caps::EFER_SVME;

/// S_CET.
pub const S_CET: u32 = 0x6A2;
/// Address of the interrupt shadow-stack table.
pub const ISST_ADDR: u32 = 0x6A8;

/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_RF: u64 = 1 << 16;
/// DR6.BS.
pub const DR6_BS: u64 = 1 << 14;
const DR6_NONE: u64 = 0xFFFF_0FF0;
const DEBUGCTL_BTF: u64 = 1 << 1;

/// The guest's address-space identifier. Each core has its own translation caches,
/// so the same number on each is no sharing.
const ASID: u32 = 1;

/// The core's VMCB.
#[inline]
#[must_use]
pub fn vmcb(core: &Core) -> &Vmcb {
    let page = &raw const core.regions[VMCB];
    // SAFETY: a page of the core's own, of which all bits are valid cells; only
    // this core and its processor touch it.
    unsafe { &*page.cast::<Vmcb>() }
}

/// Reads an MSR that every processor with SVM has.
fn existing(index: u32) -> u64 {
    // SAFETY: CPL 0 by the module's contract; the MSR exists.
    unsafe { instr::rdmsr(index) }
}

fn set_segment(segment: &Segment, selector: u16) {
    segment.selector.set(selector);
    segment.base.set(0);
    match (instr::lar(selector), instr::lsl(selector)) {
        (Some(rights), Some(limit)) if selector & !7 != 0 => {
            segment.attributes.set(fields::attributes(rights));
            segment.limit.set(limit);
        }
        // A null selector: not present.
        _ => {
            segment.attributes.set(0);
            segment.limit.set(0);
        }
    }
}

/// Fills the VMCB with the state of this core, which becomes the guest's. RSP, RIP,
/// RAX and what VMSAVE saves are written by the launch stub.
///
/// # Safety
/// CPL 0, interrupts are off, the core's region is complete.
pub unsafe fn fill(core: &Core, hypervisor: &Hypervisor, rflags: u64) {
    let vmcb = vmcb(core);
    controls(vmcb, hypervisor);
    let state = &vmcb.state;
    set_segment(&state.es, instr::es());
    set_segment(&state.cs, instr::cs());
    set_segment(&state.ss, instr::ss());
    set_segment(&state.ds, instr::ds());
    let (gdt, idt) = (instr::sgdt(), instr::sidt());
    state.gdtr.base.set(gdt.base);
    state.gdtr.limit.set(gdt.limit.into());
    state.idtr.base.set(idt.base);
    state.idtr.limit.set(idt.limit.into());
    state.cpl.set(0);
    state.efer.set(existing(msr::IA32_EFER) | EFER_SVME);
    // SAFETY: reads a register at CPL 0.
    state.cr0.set(unsafe { instr::cr0() });
    // SAFETY: reads a register at CPL 0.
    state.cr2.set(unsafe { instr::cr2() });
    // SAFETY: reads a register at CPL 0.
    state.cr3.set(unsafe { instr::cr3() });
    // SAFETY: reads a register at CPL 0.
    state.cr4.set(unsafe { instr::cr4() });
    // SAFETY: reads a register at CPL 0.
    state.dr6.set(unsafe { instr::dr6() });
    // SAFETY: reads a register at CPL 0.
    state.dr7.set(unsafe { instr::dr7() });
    state.rflags.set(rflags);
    state.g_pat.set(existing(msr::IA32_PAT));
    if hypervisor.svm.controls.shadow_stacks {
        state.s_cet.set(existing(S_CET));
        state.isst_addr.set(existing(ISST_ADDR));
    }
}

fn controls(vmcb: &Vmcb, hypervisor: &Hypervisor) {
    let control = &vmcb.control;
    control.intercept_misc1.set(
        misc1::NMI | misc1::INIT | misc1::INVD | misc1::INVLPGA | misc1::MSR | misc1::SHUTDOWN,
    );
    control.intercept_misc2.set(
        misc2::VMRUN
            | misc2::VMMCALL
            | misc2::VMLOAD
            | misc2::VMSAVE
            | misc2::STGI
            | misc2::CLGI
            | misc2::SKINIT,
    );
    control.intercept_exceptions.set(0);
    control.msrpm_base_pa.set(hypervisor.msr_bitmap.as_u64());
    control.guest_asid.set(ASID);
    let abilities = &hypervisor.svm.controls;
    control.nested_control.set(abilities.nested_control());
    control.n_cr3.set(hypervisor.svm.n_cr3);
    control.interrupt_shadow.set(0);
    control.event_inj.set(0);
    control.clean.set(0);
    // Translations of an earlier start may have the same ASID.
    control.tlb_control.set(tlb::FLUSH_ALL);
}

/// Invalidates everything derived from the nested tables on this core, at its next
/// entry.
pub fn invalidate(core: &Core) {
    let flush = if core.hypervisor().svm.controls.flush_by_asid {
        tlb::FLUSH_ASID
    } else {
        tlb::FLUSH_ALL
    };
    vmcb(core).control.tlb_control.set(flush);
}

/// Root mode cannot go on: makes the guest take a double fault with all pages
/// unwatched.
///
/// # Safety
/// Root mode; the interrupted code is abandoned.
pub unsafe fn give_up(core: &Core) -> ! {
    core.hypervisor().abandon();
    Svm::use_shared(core);
    inject(core, Event::DOUBLE_FAULT);
    // SAFETY: the registers lie where the stub put them.
    unsafe { entry::enter_after_fault(core.registers()) }
}

/// Delivers an event at the next entry.
pub fn inject(core: &Core, event: Event) {
    let control = &vmcb(core).control;
    let Some(mut word) = interrupted::event_inj(event) else {
        return;
    };
    if seeded::is(Planted::DropErrorCode) {
        word &= 0xFFFF_FFFF & !layout::HAS_ERROR_CODE;
    }
    control.event_inj.set(word);
    control
        .interrupt_shadow
        .set(control.interrupt_shadow.get() & !shadow::SHADOW);
}

impl Backend for Svm {
    type Format = NptFormat;

    #[inline]
    fn nested(hypervisor: &Hypervisor) -> Option<&Space<'static, NptFormat>> {
        match &hypervisor.space {
            Some(Nested::Npt(space)) => Some(space),
            _ => None,
        }
    }

    fn guest(core: &Core) -> GuestState {
        let state = &vmcb(core).state;
        GuestState {
            rip: state.rip.get(),
            code_base: code_base(core),
            rsp: state.rsp.get(),
            rflags: state.rflags.get(),
            cr0: state.cr0.get(),
            cr3: state.cr3.get(),
            cr4: state.cr4.get(),
            efer: efer(core),
            cpl: Self::cpl(core),
        }
    }

    #[inline]
    fn cpl(core: &Core) -> u8 {
        vmcb(core).state.cpl.get()
    }

    /// CS.L = 1 and long mode on.
    #[inline]
    fn long_mode(core: &Core) -> bool {
        const LONG: u16 = 1 << 9;
        let state = &vmcb(core).state;
        state.efer.get() & 1 << 10 != 0 && state.cs.attributes.get() & LONG != 0
    }

    #[inline]
    fn has_breakpoints(core: &Core) -> bool {
        vmcb(core).state.dr7.get() & 0xFF != 0
    }

    #[inline]
    fn delivering(core: &Core) -> bool {
        vmcb(core).control.exit_int_info.get() & layout::VALID != 0
    }

    /// The interrupt shadow ends, RFLAGS.RF is cleared, a trap flag becomes a debug
    /// exception.
    fn advance_by(core: &Core, length: u64) {
        let vmcb = vmcb(core);
        let state = &vmcb.state;
        let mut rip = state.rip.get().wrapping_add(length);
        if !Self::long_mode(core) {
            rip &= 0xFFFF_FFFF;
        }
        state.rip.set(rip);
        if !seeded::is(Planted::KeepStiBlocking) {
            let control = &vmcb.control;
            control
                .interrupt_shadow
                .set(control.interrupt_shadow.get() & !shadow::SHADOW);
        }
        let flags = state.rflags.get() & !RFLAGS_RF;
        state.rflags.set(flags);
        if flags & RFLAGS_TF != 0
            && debugctl() & DEBUGCTL_BTF == 0
            && !seeded::is(Planted::ForgetSingleStep)
        {
            state.dr6.set(state.dr6.get() & !0xF | DR6_BS);
            inject(core, Event::DEBUG);
        }
    }

    fn use_path(core: &Core, root: Hpa) {
        vmcb(core).control.n_cr3.set(root.as_u64());
        invalidate(core);
    }

    fn use_shared(core: &Core) {
        vmcb(core).control.n_cr3.set(core.hypervisor().svm.n_cr3);
        // The path's translations have the same ASID.
        invalidate(core);
    }

    /// Without the guest mode execute trap all accesses are the user's.
    fn stop_trapping(core: &Core) {
        let word = &vmcb(core).control.nested_control;
        if word.get() & nested::GMET != 0 {
            word.set(word.get() & !nested::GMET);
            // What was cached was judged with it.
            invalidate(core);
        }
    }

    /// The trap flag is borrowed. The interrupt shadow and RFLAGS.IF are cleared for
    /// the instruction, and branch stepping is off. Every exception exits, so that
    /// none is delivered with these flags on its stack. Nothing when it is armed.
    fn arm_step(core: &Core) {
        let step = &core.state.step;
        let vmcb = vmcb(core);
        if vmcb.control.intercept_exceptions.get() != 0 {
            return;
        }
        let state = &vmcb.state;
        let flags = state.rflags.get();
        step.flags.set(flags);
        step.dr6.set(state.dr6.get());
        state.dr6.set(DR6_NONE);
        state.rflags.set(flags & !RFLAGS_IF | RFLAGS_TF);
        let debugctl = debugctl();
        step.debugctl.set(debugctl);
        if debugctl & DEBUGCTL_BTF != 0 {
            set_debugctl(debugctl & !DEBUGCTL_BTF);
        }
        let control = &vmcb.control;
        step.shadow.set(control.interrupt_shadow.get());
        control
            .interrupt_shadow
            .set(step.shadow.get() & !shadow::SHADOW);
        control.intercept_exceptions.set(0xFFFF_FFFF);
    }

    fn disarm_step(core: &Core) {
        if seeded::is(Planted::StepForEver) {
            return;
        }
        let step = &core.state.step;
        let vmcb = vmcb(core);
        if vmcb.control.intercept_exceptions.get() == 0 {
            return;
        }
        let state = &vmcb.state;
        let borrowed = RFLAGS_TF | RFLAGS_IF;
        let now = state.rflags.get();
        state
            .rflags
            .set(now & !borrowed | step.flags.get() & borrowed);
        state.dr6.set(step.dr6.get());
        if step.debugctl.get() & DEBUGCTL_BTF != 0 {
            set_debugctl(step.debugctl.get());
        }
        vmcb.control.intercept_exceptions.set(0);
    }
}

/// EFER as the guest reads it.
#[must_use]
pub fn efer(core: &Core) -> u64 {
    vmcb(core).state.efer.get() & !EFER_SVME
}

/// What is to be added to RIP for its linear address.
#[must_use]
pub fn code_base(core: &Core) -> u64 {
    if Svm::long_mode(core) {
        0
    } else {
        vmcb(core).state.cs.base.get()
    }
}

/// DebugCtl: without LBR virtualization the guest's own is in the processor.
fn debugctl() -> u64 {
    // SAFETY: root mode with the host's IDT.
    unsafe { instr::try_rdmsr(msr::IA32_DEBUGCTL) }.unwrap_or(0)
}

fn set_debugctl(value: u64) {
    // SAFETY: root mode with the host's IDT; the guest's own value but for a bit.
    let _ = unsafe { instr::try_wrmsr(msr::IA32_DEBUGCTL, value) };
}

/// A fault at this instruction: RFLAGS.RF is set in what is pushed.
pub fn set_resume_flag(core: &Core) {
    let flags = &vmcb(core).state.rflags;
    flags.set(flags.get() | RFLAGS_RF);
}
