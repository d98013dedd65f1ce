//! The exit handlers: every exit code has a bounded answer.
//!
//! The handler decodes, lets neutral code decide, and ends every exit in `finish`,
//! where interrupted events are delivered again and waiting NMIs are passed on.
//!
//! **NMIs.** An NMI exits without being consumed: root mode's own handler takes it as
//! soon as the stub has set the global interrupt flag, and knows whether it is a kick
//! or the guest's. A guest's NMI is delivered by EVENTINJ, which does not make the
//! processor block further ones, so that is done here: while one is in service IRET
//! exits and is stepped over, and what has come meanwhile follows when it has retired.
//! (An emulator blocks them itself; then there is nothing left to do here.)
//!
//! **INIT.** VM_CR.R_INIT makes it a security exception in root mode: the core lets
//! the locks go that it may hold, and only then resets.
//!
//! AMD APM vol. 2, appendix C, "SVM Intercept Exit Codes", and "Event Injection".

use core::sync::atomic::Ordering;

use ept::addr::{Gpa, Gva};
use x86::msr;

use super::fields::{Vmcb, code, event as layout, misc1, shadow};
use super::msr as msrs;
use super::vcpu::{self, DR6_BS, EFER_SVME, RFLAGS_IF, RFLAGS_TF, vmcb};
use super::{Svm, interrupted, leave, npf};
use crate::backend::Backend;
use crate::counters::Counters;
use crate::emulate::length::{self, CodeSize, Kind};
use crate::event::{self, Event, Facts, Interrupted};
use crate::exit::{self, Next};
use crate::host::exceptions;
use crate::memory::GuestMemory;
use crate::percpu::{Core, CrashRecord};
use crate::registers::{GuestRegisters, Outcome};
use crate::seeded::{self, Planted};
use crate::violation::{self, Violation};
use crate::{apic, instr, shootdown};

/// Slot of an exit code in the counters: 60H to A7H less 60H, then those from 400H
/// on, and the exceptions together in the last; any other is counted as unknown.
const fn slot(code: u64) -> Option<usize> {
    #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
    match code {
        0x60..=0xA7 => Some((code - 0x60) as usize),
        0x400..=0x406 => Some((code - 0x400) as usize + 72),
        0x40..=0x5F => Some(79),
        _ => None,
    }
}

/// Answers an exit, or looks once more for NMIs and requests before the entry
/// (`exited` = 0).
#[unsafe(no_mangle)]
extern "win64" fn hvdetect_svm_slow(registers: &mut GuestRegisters, exited: u64) -> Outcome {
    // SAFETY: the stub runs with the core's GS base.
    let core = unsafe { exceptions::current() };
    core.state.look_again.store(0, Ordering::Release);
    // The NMI that was sent to come back here, if any, has been taken.
    core.state.nmi_window.store(false, Ordering::Release);
    if exited == 0 {
        finish(core, None, true);
        return Outcome::Resume;
    }
    let vmcb = vmcb(core);
    let number = vmcb.control.exit_code.get();
    registers.rax = vmcb.state.rax.get();
    if let Some(slot) = slot(number) {
        core.counters().exit(slot);
    }
    crate::trace!(
        "exit",
        core.state.index.get(),
        number,
        vmcb.state.rip.get(),
        vmcb.control.exit_info1.get(),
        vmcb.control.exit_info2.get()
    );
    if number == code::INVALID {
        if !core.state.active.load(Ordering::Acquire) {
            // The first entry: the launch is told, out of SVM.
            restore_copy(core);
            registers.rax = 3;
            leave::prepare(core);
            return Outcome::Leave;
        }
        core.state.crash.set(CrashRecord {
            cause: 3,
            number,
            rip: vmcb.state.rip.get(),
            detail: vmcb.control.event_inj.get(),
            address: 0,
        });
        crate::trace!("entry failed", vmcb.control.event_inj.get());
        // The state that the guest asked for cannot be entered; as on a bare
        // processor in such a corner, shutdown is what is left.
        // SAFETY: nothing can be saved.
        unsafe { instr::triple_fault() };
    }
    exit::forget_vector_state(registers);
    match dispatch(core, registers, number) {
        Next::Resume => finish(core, None, false),
        Next::Advance => {
            advance(core, kind(vmcb, number));
            finish(core, None, false);
        }
        Next::Raise(event) => finish(core, Some(event), false),
        Next::Leave => {
            advance(core, kind(vmcb, number));
            leave::prepare(core);
            return Outcome::Leave;
        }
    }
    vmcb.state.rax.set(registers.rax);
    Outcome::Resume
}

/// Puts the VMCB back as it was before the first entry.
fn restore_copy(core: &Core) {
    let Some(copy) = core.before.first() else {
        return;
    };
    let block = core::ptr::from_ref(vmcb(core))
        .cast_mut()
        .cast::<[u8; 4096]>();
    // SAFETY: two different pages of this core; the block's fields are cells.
    unsafe { core::ptr::copy_nonoverlapping(copy.0.get(), block, 1) };
}

fn dispatch(core: &Core, registers: &mut GuestRegisters, number: u64) -> Next {
    match number {
        code::NMI => {
            nmi(core);
            Next::Resume
        }
        code::EXCEPTION..=code::EXCEPTION_LAST => exception(core, number),
        code::IRET => {
            iret(core);
            Next::Resume
        }
        code::SHUTDOWN => triple_fault(core),
        // Root mode's handler has taken it; see `finish`.
        code::INIT => Next::Resume,
        code::INVD => {
            // Never without writing back: our own data would be lost with it.
            // SAFETY: root mode; WBINVD loses nothing.
            unsafe { instr::wbinvd() };
            Next::Advance
        }
        code::VMMCALL => exit::call::<Svm>(core, registers),
        code::VMRUN | code::VMLOAD..=code::SKINIT | code::INVLPGA =>
        {
            #[expect(clippy::cast_possible_truncation, reason = "these codes fit")]
            exit::virtualization::<Svm>(core, registers, number as u16)
        }
        code::MSR if vmcb(core).control.exit_info1.get() == 0 => rdmsr(core, registers),
        code::MSR => wrmsr(core, registers),
        code::NPF => {
            nested_page_fault(core, registers);
            Next::Resume
        }
        _ => {
            // An exit that nothing here asked for. Resuming repeats it at worst;
            // an exception would change the guest.
            Counters::bump(&core.counters().unknown);
            Next::Resume
        }
    }
}

/// The instruction that an exit of this code is about.
fn kind(vmcb: &Vmcb, code: u64) -> Kind {
    match code {
        code::MSR if vmcb.control.exit_info1.get() == 0 => Kind::Rdmsr,
        code::MSR => Kind::Wrmsr,
        code::INVD => Kind::Invd,
        code::VMRUN => Kind::Vmrun,
        code::VMLOAD => Kind::Vmload,
        code::VMSAVE => Kind::Vmsave,
        code::STGI => Kind::Stgi,
        code::CLGI => Kind::Clgi,
        code::SKINIT => Kind::Skinit,
        code::INVLPGA => Kind::Invlpga,
        _ => Kind::Vmmcall,
    }
}

/// Moves RIP past the instruction that exited.
fn advance(core: &Core, kind: Kind) {
    let length = if seeded::is(Planted::AdvanceByTwo) {
        2
    } else {
        instruction_length(core, kind)
    };
    Svm::advance_by(core, length);
}

/// Length of the instruction that exited, in bytes.
fn instruction_length(core: &Core, kind: Kind) -> u64 {
    const DEFAULT_BIG: u16 = 1 << 10;
    let vmcb = vmcb(core);
    let rip = vmcb.state.rip.get();
    let next = vmcb.control.next_rip.get();
    if core.hypervisor().svm.controls.nrip && (1..=15).contains(&next.wrapping_sub(rip)) {
        return next.wrapping_sub(rip);
    }
    let size = if Svm::long_mode(core) {
        CodeSize::Bits64
    } else if vmcb.state.cs.attributes.get() & DEFAULT_BIG != 0 {
        CodeSize::Bits32
    } else {
        CodeSize::Bits16
    };
    let guest = Svm::guest(core);
    let memory = GuestMemory::new(core, exit::paging(&guest), guest.cr3);
    let address = Gva::new(rip.wrapping_add(guest.code_base));
    let mut bytes = [0; 15];
    let count = memory
        .translate_code(address)
        .map_or(0, |here| memory.code(address, &here, &mut bytes));
    let instruction = bytes.get(..count).unwrap_or(&[]);
    if let Some(length) = length::length(kind, size, instruction) {
        return length.into();
    }
    // Another core has changed the instruction since it was executed: without a
    // prefix it was the shortest of its kind.
    Counters::bump(&core.counters().unknown);
    match kind {
        Kind::Rdmsr | Kind::Wrmsr | Kind::Invd => 2,
        _ => 3,
    }
}

/// NMIs have come, and root mode's handler has taken them.
fn nmi(core: &Core) {
    let state = &core.state;
    if seeded::is(Planted::LoseGuestNmi) {
        state.guest_nmis.store(0, Ordering::Release);
    } else if seeded::is(Planted::InventNmi) {
        state.guest_nmis.fetch_add(1, Ordering::AcqRel);
    }
    if state.guest_nmis.load(Ordering::Acquire) > 0 && state.step.count.get() > 0 {
        // It is delivered before the instruction, which is stepped afterwards.
        violation::cancel_step::<Svm>(core);
    }
}

/// The handler of a guest's NMI is about to return: NMIs stay blocked until its IRET
/// has retired, which is stepped over.
fn iret(core: &Core) {
    core.state.iret_step.set(true);
    Svm::arm_step(core);
    intercept_iret(core, false);
}

fn intercept_iret(core: &Core, on: bool) {
    let intercepts = &vmcb(core).control.intercept_misc1;
    let others = intercepts.get() & !misc1::IRET;
    intercepts.set(if on { others | misc1::IRET } else { others });
}

/// Exceptions exit in a step only.
fn exception(core: &Core, number: u64) -> Next {
    let state = &core.state;
    let vmcb = vmcb(core);
    #[expect(clippy::cast_possible_truncation, reason = "0 to 31")]
    let vector = (number - code::EXCEPTION) as u8;
    if state.step.count.get() == 0 && !state.iret_step.get() {
        Counters::bump(&core.counters().unknown);
        return Next::Resume;
    }
    if vector == 1 {
        return stepped_by_trap_flag(core);
    }
    // The instruction faulted: nothing has been stepped. The fault is the guest's,
    // with its own flags.
    let error_code = vmcb.control.exit_info1.get() & 0xFFFF_FFFF;
    let address = vmcb.control.exit_info2.get();
    if state.iret_step.replace(false) {
        state.nmi_masked.set(false);
    }
    violation::cancel_step::<Svm>(core);
    Svm::disarm_step(core);
    match vector {
        // INT3 and INTO, which point at themselves: they are executed again.
        3 | 4 => Next::Resume,
        _ => {
            if vector == 14 {
                vmcb.state.cr2.set(address);
            }
            Next::Raise(Event::exception(vector, error_code))
        }
    }
}

/// A single step by the trap flag is over.
fn stepped_by_trap_flag(core: &Core) -> Next {
    let state = &core.state;
    let step = &state.step;
    let vmcb = vmcb(core);
    let before = step.flags.get();
    let mut pending = vmcb.state.dr6.get() & 0xE00F;
    if before & RFLAGS_TF == 0 {
        pending &= !DR6_BS;
    } else {
        // Not every processor writes it before it exits.
        pending |= DR6_BS;
    }
    // If it was IRET, the flags are those that it has loaded.
    let loaded = vmcb.state.rflags.get();
    let iret = state.iret_step.replace(false);
    if let Some(page) = step.pages.first().and_then(core::cell::Cell::get) {
        let borrowed = RFLAGS_TF | RFLAGS_IF;
        exit::mend_pushed_flags::<Svm>(core, &page.fault, before, borrowed);
    }
    violation::end_step::<Svm>(core);
    Svm::disarm_step(core);
    if iret {
        vmcb.state.rflags.set(loaded);
        state.nmi_masked.set(false);
    }
    if pending == 0 {
        return Next::Resume;
    }
    // The guest steps itself, or has a breakpoint here: what the processor does
    // before it delivers a debug exception (AMD APM vol. 2, "Debug Exceptions").
    vmcb.state.dr6.set(vmcb.state.dr6.get() & !0xF | pending);
    Next::Raise(Event::DEBUG)
}

fn triple_fault(core: &Core) -> Next {
    let state = &vmcb(core).state;
    core.state.crash.set(CrashRecord {
        cause: 4,
        number: code::SHUTDOWN,
        rip: state.rip.get(),
        detail: 0,
        address: state.cr2.get(),
    });
    crate::trace!(
        "guest triple fault",
        state.rip.get(),
        state.rsp.get(),
        state.cr3.get()
    );
    // SAFETY: the guest asked for it; the platform resets the machine as it would
    // without a hypervisor.
    unsafe { instr::triple_fault() }
}

/// Rounds in which an INIT that this core has sent to itself must have reset it.
const INIT_ROUNDS: u32 = 1 << 16;

/// INIT. There is no state of the virtual processor that would wait for SIPI. So the
/// core is let go: it is reset as it would be without a hypervisor, and what it runs
/// from then on is not seen, which `status` tells as a gap. What the guest takes
/// instead, when the firmware has redirected INIT.
fn init(core: &Core) -> Option<Event> {
    if seeded::is(Planted::IgnoreInit) {
        return None;
    }
    let vm_cr = core.state.vm_cr.get();
    if vm_cr & msrs::VM_CR_R_INIT != 0 {
        return Some(Event::SECURITY);
    }
    violation::cancel_step::<Svm>(core);
    shootdown::retire(core);
    core.counters().lost.store(1, Ordering::Release);
    // SAFETY: root mode with the host's IDT; the value from before the launch.
    let _ = unsafe { instr::try_wrmsr(msrs::VM_CR, vm_cr) };
    apic::send_init(core, core.state.apic_id.get());
    for _ in 0..INIT_ROUNDS {
        core::hint::spin_loop();
    }
    // The local APIC is off: the guest goes on, seen as before.
    // SAFETY: as above; the launch has written this value.
    let _ = unsafe { instr::try_wrmsr(msrs::VM_CR, vm_cr | msrs::VM_CR_R_INIT) };
    core.counters().lost.store(0, Ordering::Release);
    shootdown::join(core);
    None
}

fn rdmsr(core: &Core, registers: &mut GuestRegisters) -> Next {
    #[expect(clippy::cast_possible_truncation, reason = "ECX")]
    let index = registers.rcx as u32;
    let answer = msrs::judge_read(index, vcpu::efer(core), core.state.vm_cr.get());
    exit::finish_rdmsr(registers, exit::execute_rdmsr(index, &answer))
}

fn wrmsr(core: &Core, registers: &GuestRegisters) -> Next {
    #[expect(clippy::cast_possible_truncation, reason = "ECX")]
    let index = registers.rcx as u32;
    let value = registers.pair();
    let done = match index {
        msr::IA32_EFER => write_efer(core, registers, value),
        // Locked: what may still be written there has no effect on the guest.
        msrs::VM_CR | msrs::SVM_KEY => true,
        msrs::VM_HSAVE_PA => value.is_multiple_of(4096),
        // SAFETY: root mode with the host's IDT; the guest may write it.
        _ => unsafe { instr::try_wrmsr(index, value) },
    };
    if done {
        Next::Advance
    } else {
        Next::Raise(Event::GENERAL_PROTECTION)
    }
}

/// EFER as the guest wants it. `false` for #GP: AMD APM vol. 2, "Extended Feature
/// Enable Register"; with SVM disabled, SVME is reserved.
fn write_efer(core: &Core, registers: &GuestRegisters, value: u64) -> bool {
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;
    const NXE: u64 = 1 << 11;
    const PG: u64 = 1 << 31;
    let state = &vmcb(core).state;
    let current = state.efer.get();
    if value & EFER_SVME != 0 && !seeded::is(Planted::AllowVmxe) {
        #[expect(clippy::cast_possible_truncation, reason = "small")]
        let _ = exit::virtualization::<Svm>(core, registers, code::MSR as u16);
        return false;
    }
    if (value ^ current) & LME != 0 && state.cr0.get() & PG != 0 {
        return false;
    }
    // The processor itself says which bits it has: they are tried with those that
    // root mode needs.
    // SAFETY: EFER exists in 64-bit mode.
    let own = unsafe { instr::rdmsr(msr::IA32_EFER) };
    let kept = EFER_SVME | LME | LMA | NXE;
    // SAFETY: root mode with the host's IDT; what root mode needs is kept.
    let legal = unsafe { instr::try_wrmsr(msr::IA32_EFER, value & !kept | own & kept) };
    // SAFETY: its value from before.
    unsafe { instr::wrmsr(msr::IA32_EFER, own) };
    if legal {
        state.efer.set(value & !LMA | current & LMA | EFER_SVME);
    }
    legal
}

/// Decodes a nested page fault.
#[must_use]
pub const fn decode_violation(exit_info1: u64, exit_info2: u64) -> Violation {
    let fault = npf::decode(exit_info1);
    Violation {
        gpa: Gpa::new(exit_info2),
        gla: None,
        read: fault.read,
        write: fault.write,
        fetch: fault.fetch,
        page_walk: fault.page_walk,
        user: false,
        delivering: false,
        cpl: 0,
        rip: Gva::new(0),
    }
}

fn nested_page_fault(core: &Core, registers: &GuestRegisters) {
    let vmcb = vmcb(core);
    let guest_rip = vmcb.state.rip.get().wrapping_add(vcpu::code_base(core));
    let fault = npf::decode(vmcb.control.exit_info1.get());
    let cpl = Svm::cpl(core);
    let mut violation = Violation {
        delivering: Svm::delivering(core),
        cpl,
        user: core.hypervisor().svm.controls.gmet && fault.is_users(cpl),
        rip: Gva::new(guest_rip),
        ..decode_violation(vmcb.control.exit_info1.get(), vmcb.control.exit_info2.get())
    };
    if fault.reserved {
        exit::misconfiguration::<Svm>(core, violation.gpa);
        return;
    }
    if violation.fetch && !violation.page_walk {
        violation.gla = Some(fetched(core, &violation));
    }
    violation::answer::<Svm>(core, &violation, || {
        exit::fault::<Svm>(core, registers, violation.gpa, violation.gla)
    });
}

/// The linear address of a fetch that faulted, which is not told: the
/// instruction's, or the beginning of the next page when the instruction reaches
/// into it.
fn fetched(core: &Core, violation: &Violation) -> Gva {
    let next = Gva::new((violation.rip.as_u64() | 0xFFF).wrapping_add(1));
    if violation.rip.page_offset() <= 4096 - 15 {
        return violation.rip;
    }
    let guest = Svm::guest(core);
    let memory = GuestMemory::new(core, exit::paging(&guest), guest.cr3);
    let page = violation.gpa.page_base();
    match memory.translate_code(violation.rip) {
        Some(here) if here.gpa.page_base() == page => violation.rip,
        _ => next,
    }
}

/// The end of every exit: requests that had to wait are answered, interrupted
/// events are delivered again, the guest's NMIs are passed on.
fn finish(core: &Core, mut raised: Option<Event>, only_look: bool) {
    let state = &core.state;
    let control = &vmcb(core).control;
    if state.init.swap(false, Ordering::AcqRel) {
        raised = init(core).or(raised);
    }
    if state.machine_check.swap(false, Ordering::AcqRel) && raised.is_none() {
        raised = Some(Event::MACHINE_CHECK);
    }
    if state.step.count.get() > 0 {
        let behind = state.acknowledged.load(Ordering::Relaxed)
            < core.hypervisor().generation.load(Ordering::Acquire);
        if behind || state.step.stale.get() {
            violation::cancel_step::<Svm>(core);
        }
    } else {
        shootdown::serve(core);
    }
    if state.iret_step.get() {
        // It may have been cancelled with a step over a page.
        Svm::arm_step(core);
    }
    let interrupted = if only_look {
        Interrupted::default()
    } else {
        interrupted::interrupted(control.exit_int_info.get())
    };
    let nmis = state.guest_nmis.load(Ordering::Acquire);
    let valid = |word: u64| word & layout::VALID != 0;
    // A debug exception of an instruction that was carried out.
    let pending = valid(control.event_inj.get());
    if raised.is_none() && nmis == 0 && !valid(interrupted.info) {
        return;
    }
    let facts = Facts {
        interrupted,
        raised,
        blocking: u64::from(control.interrupt_shadow.get() & shadow::SHADOW != 0)
            | u64::from(state.nmi_masked.get()) << 3,
        unblocked_by_iret: false,
        nmis,
        stepping: state.step.count.get() > 0 || state.iret_step.get() || pending,
    };
    let plan = event::plan(&facts);
    if let Some(event) = plan.inject
        && !(plan.repeated && seeded::is(Planted::DropReinjection))
    {
        if raised == Some(event) && event.is_fault() && !seeded::is(Planted::ForgetResumeFlag) {
            vcpu::set_resume_flag(core);
        }
        vcpu::inject(core, event);
        if event.is_nmi() {
            state.nmi_masked.set(true);
            intercept_iret(core, true);
        }
        if plan.repeated && !plan.nmi_taken {
            Counters::bump(&core.counters().reinjected);
        }
    }
    if plan.nmi_taken {
        state.guest_nmis.fetch_sub(1, Ordering::AcqRel);
        Counters::bump(&core.counters().nmis_passed);
    }
    let waiting = state.guest_nmis.load(Ordering::Acquire) > 0;
    let steps = state.step.count.get() > 0 || state.iret_step.get();
    if waiting && !state.nmi_masked.get() && !steps {
        state.nmi_window.store(true, Ordering::Release);
        // SAFETY: root mode; the stub enters the guest with it clear.
        unsafe { instr::clgi() };
        // It exits as soon as the guest can take one.
        apic::send_nmi(core, state.apic_id.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_decoded() {
        let fetch = decode_violation(0x1_0000_0015, 0x1234_5000);
        assert!(fetch.fetch && !fetch.write && !fetch.page_walk);
        let write = decode_violation(0x1_0000_0007, 0x1000);
        assert!(write.write && !write.fetch && !write.page_walk);
        let walk = decode_violation(0x2_0000_0007, 0x1000);
        assert!(walk.write && walk.page_walk);
        let absent = decode_violation(0x1_0000_0004, 0x1000);
        assert!(absent.read && !absent.write && !absent.fetch);
    }

    #[test]
    fn exit_codes_have_the_slots_of_the_status() {
        assert_eq!(
            [slot(0x60), slot(0x7C), slot(0x400), slot(0x41)],
            [Some(0), Some(0x1C), Some(72), Some(79)]
        );
        assert_eq!([slot(0x3F), slot(u64::MAX), slot(0x407)], [None; 3]);
    }
}
