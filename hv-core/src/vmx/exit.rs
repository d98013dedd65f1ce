//! The exit handlers: every basic exit reason has a bounded answer.
//!
//! The stub in `entry` answers most CPUIDs itself. The handler here decodes, lets
//! neutral code decide, and ends every exit in `finish`, where interrupted events
//! are delivered again and waiting NMIs are passed on.
//!
//! Intel SDM vol. 3, appendix C, "VMX Basic Exit Reasons".

use core::sync::atomic::Ordering;

use ept::addr::{Gpa, Gva};
use x86::msr;

use super::Vmx;
use super::fields::{control, guest, ro};
use super::vcpu::{self, read, write};
use super::{caps, leave};
use crate::backend::Backend;
use crate::counters::Counters;
use crate::emulate::{cpuid, cr, msr as msrs, xsetbv};
use crate::event::{self, Event, Facts, Interrupted};
use crate::exit::{self, Next};
use crate::host::exceptions;
use crate::percpu::{Core, CrashRecord};
use crate::registers::{GuestRegisters, Outcome};
use crate::seeded::{self, Planted};
use crate::violation::{self, Violation};
use crate::{instr, shootdown};

/// Basic exit reasons.
pub mod reason {
    #![expect(missing_docs, reason = "the manual's names")]
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INIT: u16 = 3;
    pub const SIPI: u16 = 4;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const VMCALL: u16 = 18;
    pub const VMXON: u16 = 27;
    pub const CR_ACCESS: u16 = 28;
    pub const DR_ACCESS: u16 = 29;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const ENTRY_GUEST_STATE: u16 = 33;
    pub const ENTRY_MSR: u16 = 34;
    pub const MONITOR_TRAP: u16 = 37;
    pub const ENTRY_MACHINE_CHECK: u16 = 41;
    pub const EPT_VIOLATION: u16 = 48;
    pub const EPT_MISCONFIGURATION: u16 = 49;
    pub const INVEPT: u16 = 50;
    pub const RDTSCP: u16 = 51;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const VMFUNC: u16 = 59;
}

const ENTRY_FAILED: u64 = 1 << 31;

/// Answers an exit (`only_look` = 0), or looks once more for NMIs and requests
/// before the entry (1).
#[unsafe(no_mangle)]
extern "win64" fn hvdetect_vmx_slow(registers: &mut GuestRegisters, only_look: u32) -> Outcome {
    // SAFETY: the stub runs with the core's GS base.
    let core = unsafe { exceptions::current() };
    core.state.look_again.store(0, Ordering::Release);
    if only_look != 0 {
        finish(core, None, true);
        return Outcome::Resume;
    }
    let full = read(ro::EXIT_REASON);
    #[expect(clippy::cast_possible_truncation, reason = "the basic reason")]
    let basic = full as u16;
    if basic == reason::EXCEPTION_OR_NMI {
        // Two NMIs that wait are one for the processor: a kick and an NMI of the
        // guest must not meet while this exit is answered.
        // SAFETY: root mode with the host's IDT, on the exit stack.
        unsafe { instr::unblock_nmis() };
    }
    core.counters().exit(usize::from(basic));
    crate::trace!(
        "exit",
        core.state.index.get(),
        full,
        read(guest::RIP),
        read(ro::EXIT_QUALIFICATION)
    );
    if full & ENTRY_FAILED != 0 {
        if !core.state.active.load(Ordering::Acquire) {
            // The first entry: the launch is told, out of VMX operation.
            registers.rax = 3;
            leave::prepare(core);
            return Outcome::Leave;
        }
        core.state.crash.set(CrashRecord {
            cause: 3,
            number: full,
            rip: read(guest::RIP),
            detail: read(ro::EXIT_QUALIFICATION),
            address: 0,
        });
        crate::trace!("entry failed", full, read(ro::EXIT_QUALIFICATION));
        // The state that the guest asked for cannot be entered; as on a bare
        // processor in such a corner, shutdown is what is left.
        // SAFETY: nothing can be saved.
        unsafe { instr::triple_fault() };
    }
    exit::forget_vector_state(registers);
    match dispatch(core, registers, basic) {
        Next::Resume => finish(core, None, false),
        Next::Advance => {
            vcpu::advance(core);
            finish(core, None, false);
        }
        Next::Raise(event) => finish(core, Some(event), false),
        Next::Leave => {
            vcpu::advance(core);
            leave::prepare(core);
            return Outcome::Leave;
        }
    }
    Outcome::Resume
}

#[unsafe(no_mangle)]
extern "win64" fn hvdetect_vmx_resume_failed() -> ! {
    // SAFETY: the stub runs with the core's GS base.
    let core = unsafe { exceptions::current() };
    core.state.crash.set(CrashRecord {
        cause: 2,
        number: read(ro::VM_INSTRUCTION_ERROR),
        rip: read(guest::RIP),
        detail: 0,
        address: 0,
    });
    crate::trace!("resume failed", read(ro::VM_INSTRUCTION_ERROR));
    // SAFETY: the guest cannot be entered any more.
    unsafe { instr::triple_fault() }
}

fn dispatch(core: &Core, registers: &mut GuestRegisters, basic: u16) -> Next {
    match basic {
        reason::EXCEPTION_OR_NMI => exception_or_nmi(core),
        reason::TRIPLE_FAULT => triple_fault(core),
        reason::INIT => init(core, registers),
        reason::SIPI => sipi(core),
        reason::NMI_WINDOW => {
            vcpu::close_nmi_window();
            Next::Resume
        }
        reason::CPUID => identify(registers),
        reason::INVD => {
            // Never without writing back: our own data would be lost with it.
            // SAFETY: root mode; WBINVD loses nothing.
            unsafe { instr::wbinvd() };
            Next::Advance
        }
        reason::VMCALL => exit::call::<Vmx>(core, registers),
        19..=27 | reason::INVEPT | reason::INVVPID => {
            exit::virtualization::<Vmx>(core, registers, basic)
        }
        reason::GETSEC | reason::VMFUNC => Next::Raise(Event::UNDEFINED),
        reason::CR_ACCESS => control_register(core, registers),
        reason::RDMSR => rdmsr(registers),
        reason::WRMSR => wrmsr(core, registers),
        reason::MONITOR_TRAP => {
            violation::end_step::<Vmx>(core);
            Next::Resume
        }
        reason::EPT_VIOLATION => {
            ept_violation(core, registers);
            Next::Resume
        }
        reason::EPT_MISCONFIGURATION => {
            exit::misconfiguration::<Vmx>(core, Gpa::new(read(ro::GUEST_PHYSICAL_ADDR_FULL)));
            Next::Resume
        }
        reason::WBINVD => {
            // SAFETY: root mode.
            unsafe { instr::wbinvd() };
            Next::Advance
        }
        reason::XSETBV => set_extended_control(core, registers),
        // A task switch cannot be had from 64-bit mode; from the 32-bit code of a
        // starting core it is what the processor would fault on as well.
        reason::TASK_SWITCH => Next::Raise(Event::GENERAL_PROTECTION),
        _ => {
            // An exit that nothing here asked for. Resuming repeats it at worst;
            // an exception would change the guest.
            Counters::bump(&core.counters().unknown);
            Next::Resume
        }
    }
}

const DEBUG_EXCEPTION: u64 = 3 << 8 | 1;
const PAGE_FAULT: u64 = 3 << 8 | 0xE;

fn guest_cr0() -> u64 {
    let mask = read(control::CR0_GUEST_HOST_MASK);
    read(guest::CR0) & !mask | read(control::CR0_READ_SHADOW) & mask
}

fn identify(registers: &mut GuestRegisters) -> Next {
    #[expect(clippy::cast_possible_truncation, reason = "32-bit operands")]
    let (leaf, subleaf) = (registers.rax as u32, registers.rcx as u32);
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    registers.rax = answer.eax.into();
    registers.rbx = answer.ebx.into();
    let ecx = cpuid::guest_ecx(leaf, subleaf, answer.ecx, vcpu::cr4());
    registers.rcx = match leaf {
        1 if seeded::is(Planted::ShowVmx) => ecx | 1 << 5,
        1 if seeded::is(Planted::FrozenOsxsave) => answer.ecx,
        _ => ecx,
    }
    .into();
    registers.rdx = answer.edx.into();
    Next::Advance
}

fn exception_or_nmi(core: &Core) -> Next {
    let info = read(ro::VMEXIT_INTERRUPTION_INFO);
    if info >> 8 & 7 == 2 {
        if shootdown::take_kick(core) && !seeded::is(Planted::PassKick) {
            Counters::bump(&core.counters().kicks_taken);
        } else if !seeded::is(Planted::LoseGuestNmi) {
            let nmis = 1 + u32::from(seeded::is(Planted::InventNmi));
            core.state.guest_nmis.fetch_add(nmis, Ordering::AcqRel);
        }
        return Next::Resume;
    }
    if core.state.step.count.get() == 0 || core.hypervisor().features.mtf {
        // No exception is intercepted but in a step by the trap flag.
        Counters::bump(&core.counters().unknown);
        return Next::Resume;
    }
    if info & 0x7FF == DEBUG_EXCEPTION {
        return stepped_by_trap_flag(core);
    }
    // The instruction faulted: nothing has been stepped. The fault is the
    // guest's, with its own flags.
    let qualification = read(ro::EXIT_QUALIFICATION);
    let error_code = read(ro::VMEXIT_INTERRUPTION_ERR_CODE);
    violation::cancel_step::<Vmx>(core);
    if info & 0x7FF == PAGE_FAULT {
        // SAFETY: the exit has kept the faulting address out of CR2; root mode has
        // none of its own.
        unsafe { instr::set_cr2(qualification) };
    }
    Next::Raise(Event::again(info, error_code))
}

/// A single step by the trap flag is over.
fn stepped_by_trap_flag(core: &Core) -> Next {
    const SINGLE_STEP: u64 = 1 << 14;
    let step = &core.state.step;
    let before = step.flags.get();
    let mut pending = read(ro::EXIT_QUALIFICATION) & 0xE00F;
    if before & vcpu::RFLAGS_TF == 0 {
        pending &= !SINGLE_STEP;
    }
    if let Some(page) = step.pages.first().and_then(core::cell::Cell::get) {
        let borrowed = vcpu::RFLAGS_TF | vcpu::RFLAGS_IF;
        exit::mend_pushed_flags::<Vmx>(core, &page.fault, before, borrowed);
    }
    violation::end_step::<Vmx>(core);
    if pending == 0 {
        return Next::Resume;
    }
    // The guest steps itself, or has a breakpoint here: what the processor does
    // before it delivers a debug exception (Intel SDM vol. 3, "Debug Exceptions").
    // SAFETY: the guest's own register, which root mode leaves alone otherwise.
    let dr6 = unsafe { instr::dr6() };
    // SAFETY: as above.
    unsafe { instr::set_dr6(dr6 & !0xF | pending) };
    Next::Raise(Event::DEBUG)
}

fn triple_fault(core: &Core) -> Next {
    core.state.crash.set(CrashRecord {
        cause: 4,
        number: reason::TRIPLE_FAULT.into(),
        rip: read(guest::RIP),
        detail: read(ro::EXIT_QUALIFICATION),
        address: 0,
    });
    crate::trace!(
        "guest triple fault",
        read(guest::RIP),
        read(guest::RSP),
        read(guest::CR3)
    );
    // SAFETY: the guest asked for it; the platform resets the machine as it would
    // without a hypervisor.
    unsafe { instr::triple_fault() }
}

/// INIT: the processor's state after INIT, waiting for SIPI (Intel SDM vol. 3,
/// "Processor State After Reset" and "MP Initialization").
fn init(core: &Core, registers: &mut GuestRegisters) -> Next {
    if seeded::is(Planted::IgnoreInit) {
        return Next::Resume;
    }
    // An instruction that was being stepped over will not be finished.
    violation::cancel_step::<Vmx>(core);
    shootdown::sleep(core);
    *registers = GuestRegisters {
        rdx: u64::from(core::arch::x86_64::__cpuid(1).eax),
        ..GuestRegisters::default()
    };
    let fixed = core.hypervisor().vmx.cr0_fixed;
    let cr0 = guest_cr0() & (1 << 30 | 1 << 29) | 1 << 4;
    write(guest::CR0, cr0 | fixed);
    write(control::CR0_READ_SHADOW, cr0);
    write(guest::CR3, 0);
    write(guest::CR4, 1 << 13);
    write(control::CR4_READ_SHADOW, 0);
    write(guest::RFLAGS, 2);
    write(guest::RIP, 0xFFF0);
    write(guest::RSP, 0);
    write(guest::DR7, 0x400);
    for (selector, rights) in [
        (guest::ES_SELECTOR, 0x93),
        (guest::CS_SELECTOR, 0x9B),
        (guest::SS_SELECTOR, 0x93),
        (guest::DS_SELECTOR, 0x93),
        (guest::FS_SELECTOR, 0x93),
        (guest::GS_SELECTOR, 0x93),
        (guest::LDTR_SELECTOR, 0x82),
        (guest::TR_SELECTOR, 0x8B),
    ] {
        let offset = selector - guest::ES_SELECTOR;
        write(selector, 0);
        write(guest::ES_BASE + offset, 0);
        write(guest::ES_LIMIT + offset, 0xFFFF);
        write(guest::ES_ACCESS_RIGHTS + offset, rights);
    }
    write(guest::CS_SELECTOR, 0xF000);
    write(guest::CS_BASE, 0xFFFF_0000);
    write(guest::GDTR_BASE, 0);
    write(guest::GDTR_LIMIT, 0xFFFF);
    write(guest::IDTR_BASE, 0);
    write(guest::IDTR_LIMIT, 0xFFFF);
    write(guest::IA32_EFER_FULL, 0);
    let entry = read(control::VMENTRY_CONTROLS);
    write(
        control::VMENTRY_CONTROLS,
        entry & !u64::from(caps::ENTRY_IA32E),
    );
    write(guest::INTERRUPTIBILITY_STATE, 0);
    write(guest::PENDING_DBG_EXCEPTIONS, 0);
    write(guest::ACTIVITY_STATE, vcpu::ACTIVITY_WAIT_FOR_SIPI);
    Next::Resume
}

fn sipi(core: &Core) -> Next {
    shootdown::wake(core);
    let vector =
        (read(ro::EXIT_QUALIFICATION) & 0xFF) + u64::from(seeded::is(Planted::SipiOffByOne));
    write(guest::CS_SELECTOR, vector << 8);
    write(guest::CS_BASE, vector << 12);
    write(guest::RIP, 0);
    write(guest::ACTIVITY_STATE, vcpu::ACTIVITY_ACTIVE);
    Next::Resume
}

fn control_register(core: &Core, registers: &mut GuestRegisters) -> Next {
    let facts = cr::Facts {
        cr0: guest_cr0(),
        cr4: vcpu::cr4(),
        efer: read(guest::IA32_EFER_FULL),
        cs_long: Vmx::long_mode(core),
    };
    let value = match cr::decode(read(ro::EXIT_QUALIFICATION)) {
        cr::Access::Write {
            register: 0,
            source,
        } => registers.general(source, read(guest::RSP)),
        cr::Access::Write {
            register: 4,
            source,
        } => {
            let value = registers.general(source, read(guest::RSP));
            if !cr::permits_cr4(value) && !seeded::is(Planted::AllowVmxe) {
                return Next::Raise(Event::GENERAL_PROTECTION);
            }
            write(guest::CR4, value | 1 << 13);
            let vmxe = u64::from(seeded::is(Planted::ShowVmxe)) << 13;
            write(control::CR4_READ_SHADOW, value | vmxe);
            return Next::Advance;
        }
        cr::Access::ClearTaskSwitched => cr::clear_task_switched(facts.cr0),
        cr::Access::LoadMachineStatus(operand) => cr::load_machine_status(facts.cr0, operand),
        // No other access is intercepted.
        cr::Access::Write { .. } | cr::Access::Read { .. } => {
            Counters::bump(&core.counters().unknown);
            return Next::Advance;
        }
    };
    if seeded::is(Planted::FaultOnNe) {
        return Next::Raise(Event::GENERAL_PROTECTION);
    }
    let Some(new) = cr::write_cr0(&facts, value) else {
        return Next::Raise(Event::GENERAL_PROTECTION);
    };
    write(guest::CR0, new.cr0 | core.hypervisor().vmx.cr0_fixed);
    write(control::CR0_READ_SHADOW, new.cr0);
    if (new.cr0 ^ facts.cr0) & cr::CACHE_BITS != 0 {
        // An entry does not load these: they are root mode's as well (Intel SDM
        // vol. 3, "Loading Guest Control Registers, Debug Registers, and MSRs").
        // SAFETY: reads a register at CPL 0.
        let own = unsafe { instr::cr0() };
        // SAFETY: the guest's cache control, which applies to the whole core; the
        // combination is legal, having been judged.
        unsafe { instr::set_cr0(own & !cr::CACHE_BITS | new.cr0 & cr::CACHE_BITS) };
    }
    if new.efer != facts.efer {
        write(guest::IA32_EFER_FULL, new.efer);
        let ia32e = u64::from(caps::ENTRY_IA32E);
        let entry = read(control::VMENTRY_CONTROLS) & !ia32e;
        let entry = if new.efer & 1 << 10 != 0 {
            entry | ia32e
        } else {
            entry
        };
        write(control::VMENTRY_CONTROLS, entry);
    }
    // Paging or caching may have changed: the linear translations go.
    // SAFETY: root mode; the processor has INVVPID, checked before the launch.
    unsafe { instr::invvpid_single(1) };
    Next::Advance
}

fn rdmsr(registers: &mut GuestRegisters) -> Next {
    #[expect(clippy::cast_possible_truncation, reason = "ECX")]
    let index = registers.rcx as u32;
    // SAFETY: root mode with the host's IDT; IA32_FEATURE_CONTROL exists with VMX.
    let feature_control = unsafe { instr::rdmsr(msrs::FEATURE_CONTROL) };
    let value = match msrs::judge_read(index, feature_control) {
        msrs::Answer::Value(_) if seeded::is(Planted::ShowFeatureControl) => Some(feature_control),
        answer => exit::execute_rdmsr(index, &answer),
    };
    exit::finish_rdmsr(registers, value)
}

fn wrmsr(core: &Core, registers: &mut GuestRegisters) -> Next {
    #[expect(clippy::cast_possible_truncation, reason = "ECX")]
    let index = registers.rcx as u32;
    let value = registers.pair();
    let hypervisor = core.hypervisor();
    match msrs::judge_write(index, hypervisor.variable_ranges) {
        msrs::Answer::GeneralProtection | msrs::Answer::Value(_) => {
            return Next::Raise(Event::GENERAL_PROTECTION);
        }
        msrs::Answer::Execute => {
            // SAFETY: root mode with the host's IDT; the guest may write it.
            if !unsafe { instr::try_wrmsr(index, value) } {
                return Next::Raise(Event::GENERAL_PROTECTION);
            }
        }
        msrs::Answer::ExecuteMemoryType => {
            // SAFETY: root mode with the host's IDT; the guest may write it.
            if !unsafe { instr::try_wrmsr(index, value) } {
                return Next::Raise(Event::GENERAL_PROTECTION);
            }
            retype(core, index, value);
        }
    }
    Next::Advance
}

/// The guest has changed a memory-type range register: the nested tables follow.
fn retype(core: &Core, index: u32, value: u64) {
    let hypervisor = core.hypervisor();
    let Some(space) = Vmx::nested(hypervisor) else {
        return;
    };
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    // Every core writes the same values one after the other; only the first
    // write of each changes anything here.
    if !seeded::is(Planted::StaleTypes)
        && hypervisor.mtrr.read(index) != Some(value)
        && hypervisor.mtrr.write(index, value)
    {
        let done = space.retype(Gpa::new(0)..space.limit());
        if done.flush.needs_acknowledgement() {
            shootdown::revoke(core);
        }
    }
    drop(held);
}

fn set_extended_control(core: &Core, registers: &GuestRegisters) -> Next {
    #[expect(clippy::cast_possible_truncation, reason = "ECX")]
    let index = registers.rcx as u32;
    match xsetbv::judge(vcpu::cr4(), Vmx::cpl(core), index) {
        xsetbv::Answer::Undefined => Next::Raise(Event::UNDEFINED),
        xsetbv::Answer::GeneralProtection => Next::Raise(Event::GENERAL_PROTECTION),
        xsetbv::Answer::Execute if seeded::is(Planted::SkipXsetbv) => Next::Advance,
        xsetbv::Answer::Execute => {
            let value = registers.pair();
            // Root mode's CR4.OSXSAVE follows the guest's at launch; it may have
            // been set since.
            // SAFETY: reads a register at CPL 0.
            let cr4 = unsafe { instr::cr4() };
            if cr4 & 1 << 18 == 0 {
                // SAFETY: the guest has it set, so the processor has it.
                unsafe { instr::set_cr4(cr4 | 1 << 18) };
                write(super::fields::host::CR4, cr4 | 1 << 18);
            }
            // SAFETY: root mode with the host's IDT; CR4.OSXSAVE is set.
            if unsafe { instr::try_xsetbv(index, value) } {
                Next::Advance
            } else {
                Next::Raise(Event::GENERAL_PROTECTION)
            }
        }
    }
}

/// Decodes an EPT violation (Intel SDM vol. 3, "Exit Qualification for EPT
/// Violations"). Only bits 0-2, 7 and 8 are used.
#[must_use]
pub const fn decode_violation(qualification: u64, gpa: u64, gla: u64) -> Violation {
    let linear = qualification & 1 << 7 != 0;
    Violation {
        gpa: Gpa::new(gpa),
        gla: if linear { Some(Gva::new(gla)) } else { None },
        read: qualification & 1 != 0,
        write: qualification & 1 << 1 != 0,
        fetch: qualification & 1 << 2 != 0,
        page_walk: !linear || qualification & 1 << 8 == 0,
        user: false,
        delivering: false,
        cpl: 0,
        rip: Gva::new(0),
    }
}

fn ept_violation(core: &Core, registers: &GuestRegisters) {
    let violation = Violation {
        delivering: Vmx::delivering(core),
        cpl: Vmx::cpl(core),
        rip: Gva::new(read(guest::RIP).wrapping_add(vcpu::code_base(core))),
        ..decode_violation(
            read(ro::EXIT_QUALIFICATION),
            read(ro::GUEST_PHYSICAL_ADDR_FULL),
            read(ro::GUEST_LINEAR_ADDR),
        )
    };
    violation::answer::<Vmx>(core, &violation, || {
        exit::fault::<Vmx>(core, registers, violation.gpa, violation.gla)
    });
}

/// The end of every exit: requests that had to wait are answered, interrupted
/// events are delivered again, the guest's NMIs are passed on.
fn finish(core: &Core, mut raised: Option<Event>, only_look: bool) {
    let state = &core.state;
    if state.machine_check.swap(false, Ordering::AcqRel) && raised.is_none() {
        raised = Some(Event::MACHINE_CHECK);
    }
    if state.step.count.get() > 0 {
        let behind = state.acknowledged.load(Ordering::Relaxed)
            < core.hypervisor().generation.load(Ordering::Acquire);
        if behind || state.step.stale.get() {
            violation::cancel_step::<Vmx>(core);
        }
    } else {
        shootdown::serve(core);
    }
    let pending = read(control::VMENTRY_INTERRUPTION_INFO_FIELD) & 1 << 31 != 0;
    let interrupted = if only_look {
        Interrupted::default()
    } else {
        Interrupted {
            info: read(ro::IDT_VECTORING_INFO),
            error_code: read(ro::IDT_VECTORING_ERR_CODE),
        }
    };
    let nmis = state.guest_nmis.load(Ordering::Acquire);
    let has_iret_bit = matches!(
        (read(ro::EXIT_REASON) & 0xFFFF) as u16,
        reason::EPT_VIOLATION | reason::EPT_MISCONFIGURATION
    );
    let unblocked_by_iret =
        !only_look && has_iret_bit && read(ro::EXIT_QUALIFICATION) & 1 << 12 != 0;
    if raised.is_none() && nmis == 0 && !unblocked_by_iret && interrupted.info & 1 << 31 == 0 {
        return;
    }
    let facts = Facts {
        interrupted,
        raised,
        blocking: read(guest::INTERRUPTIBILITY_STATE),
        unblocked_by_iret,
        nmis,
        stepping: state.step.count.get() > 0 || pending,
    };
    let plan = event::plan(&facts);
    if let Some(blocking) = plan.nmi_blocking
        && !(blocking && seeded::is(Planted::ForgetIretBlocking))
    {
        let now = read(guest::INTERRUPTIBILITY_STATE);
        let bit = vcpu::BLOCKED_BY_NMI;
        write(
            guest::INTERRUPTIBILITY_STATE,
            if blocking { now | bit } else { now & !bit },
        );
    }
    if let Some(event) = plan.inject
        && !(plan.repeated && seeded::is(Planted::DropReinjection))
    {
        if raised == Some(event) && event.is_fault() && !seeded::is(Planted::ForgetResumeFlag) {
            vcpu::set_resume_flag();
        }
        inject(event);
        if plan.repeated && !plan.nmi_taken {
            Counters::bump(&core.counters().reinjected);
        }
    }
    if plan.nmi_taken {
        state.guest_nmis.fetch_sub(1, Ordering::AcqRel);
        Counters::bump(&core.counters().nmis_passed);
    }
    if plan.nmi_window || (facts.nmis > 0 && pending) {
        // SAFETY: no other access to the primary controls is under way: NMIs open
        // the window only in the resume window of the stub.
        unsafe { vcpu::open_nmi_window() };
    }
}

fn inject(event: Event) {
    if let Some(code) = event.error_code()
        && !seeded::is(Planted::DropErrorCode)
    {
        write(control::VMENTRY_EXCEPTION_ERR_CODE, code);
    }
    if event.needs_length() {
        write(
            control::VMENTRY_INSTRUCTION_LEN,
            read(ro::VMEXIT_INSTRUCTION_LEN),
        );
    }
    write(control::VMENTRY_INTERRUPTION_INFO_FIELD, event.info());
    // Blocking by STI and MOV SS ends with the delivery of an event; an entry
    // with both would be refused.
    let blocking = read(guest::INTERRUPTIBILITY_STATE);
    if blocking & 3 != 0 {
        write(guest::INTERRUPTIBILITY_STATE, blocking & !3);
    }
}

/// Reads an MSR of the guest that the VMCS holds.
#[must_use]
pub fn guest_msr(index: u32) -> Option<u64> {
    Some(read(match index {
        msr::IA32_EFER => guest::IA32_EFER_FULL,
        msr::IA32_PAT => guest::IA32_PAT_FULL,
        msr::IA32_DEBUGCTL => guest::IA32_DEBUGCTL_FULL,
        msr::IA32_SYSENTER_CS => guest::IA32_SYSENTER_CS,
        msr::IA32_SYSENTER_ESP => guest::IA32_SYSENTER_ESP,
        msr::IA32_SYSENTER_EIP => guest::IA32_SYSENTER_EIP,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_decoded() {
        let fetch = decode_violation(0x59C, 0x1234_5000, 0xFFFF_8000_0000_0000);
        assert!(fetch.fetch && !fetch.write && !fetch.page_walk);
        let write = decode_violation(0x18A, 0x1000, 0x2000);
        assert!(write.write && !write.page_walk && write.gla.is_some());
        let walk = decode_violation(0x8A, 0x1000, 0x2000);
        assert!(walk.write && walk.page_walk && walk.gla.is_some());
        let asynchronous = decode_violation(0x2, 0x1000, 0x2000);
        assert!(asynchronous.page_walk && asynchronous.gla.is_none());
    }
}
