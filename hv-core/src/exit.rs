//! What the exit handlers of both vendors do alike.
//!
//! A vendor's handler decodes the exit; what follows from it for the guest is
//! said here once: whose call it is, what a finding is told about the core, what
//! an instruction of virtualization comes to, how a read of a model-specific
//! register ends.

use core::sync::atomic::Ordering;

use ept::addr::{Gpa, Gva};

use crate::backend::{Backend, GuestState};
use crate::counters::Counters;
use crate::emulate::msr;
use crate::event::Event;
use crate::hypercall::{self, Request};
use crate::instr;
use crate::memory::GuestMemory;
use crate::monitor::{Crossing, Fault};
use crate::percpu::Core;
use crate::registers::GuestRegisters;
use crate::seeded::{self, Planted};
use crate::shootdown;
use crate::walk::Paging;

/// How an exit goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The guest goes on where it is.
    Resume,
    /// The instruction has been carried out.
    Advance,
    /// The guest takes an exception at the instruction.
    Raise(Event),
    /// The hypervisor is to end on this core.
    Leave,
}

/// How the guest translates addresses.
#[must_use]
#[inline]
pub const fn paging(guest: &GuestState) -> Paging {
    Paging::of(guest.cr0, guest.cr4, guest.efer)
}

/// RFLAGS.RF, which a processor may set in what it saves at a fault; the guest's own
/// flags have it clear.
const RESUME_FLAG: u64 = 1 << 16;

/// The core's state at a fault.
#[inline]
pub fn fault<B: Backend>(
    core: &Core,
    registers: &GuestRegisters,
    gpa: Gpa,
    gla: Option<Gva>,
) -> Fault {
    let guest = B::guest(core);
    Fault {
        crossing: Crossing::Fetch,
        gpa,
        gla,
        rip: Gva::new(guest.rip.wrapping_add(guest.code_base)),
        rsp: Gva::new(guest.rsp),
        rflags: guest.rflags & !RESUME_FLAG,
        cr3: guest.cr3,
        paging: paging(&guest),
        cr4: guest.cr4,
        cpl: guest.cpl,
        long_mode: guest.efer & 1 << 10 != 0,
        own_page: false,
        tsc: instr::rdtsc(),
        core: core.state.index.get(),
        gprs: registers.in_order(guest.rsp),
    }
}

/// A reserved bit is set in an entry of ours: the page is given up.
pub fn misconfiguration<B: Backend>(core: &Core, gpa: Gpa) {
    let hypervisor = core.hypervisor();
    Counters::bump(&core.counters().misconfigured);
    crate::trace!("misconfiguration", gpa.as_u64());
    if let Some(space) = B::nested(hypervisor) {
        let held = hypervisor.transition.acquire(|| shootdown::serve(core));
        if space.exempt_whole(gpa).is_ok() {
            shootdown::revoke(core);
        }
        drop(held);
    }
}

/// Spoils what the stub will restore, when a test asks for it.
pub fn forget_vector_state(registers: &GuestRegisters) {
    // Both stubs' frames lie below the registers: XMM0-5 from 20H on, MXCSR at 80H.
    let frame = (&raw const *registers as u64).wrapping_sub(0x98);
    if seeded::is(Planted::ForgetXmm3) {
        // SAFETY: the stub's own frame on this core's stack.
        unsafe { instr::store64(frame + 0x50, 0x0BAD_0BAD) };
    }
    if seeded::is(Planted::ForgetMxcsr) {
        // SAFETY: as above.
        unsafe { instr::store32(frame + 0x80, 0x1F80) };
    }
}

/// An instruction of virtualization: the guest has none, so it is undefined; and
/// told. `number` is the exit's.
pub fn virtualization<B: Backend>(core: &Core, registers: &GuestRegisters, number: u16) -> Next {
    if seeded::is(Planted::SkipVmxInstructions) {
        return Next::Advance;
    }
    let fault = fault::<B>(core, registers, Gpa::new(0), None);
    if let Some(monitor) = core.hypervisor().monitor {
        let mut memory = GuestMemory::new(core, fault.paging, fault.cr3);
        let held = core
            .hypervisor()
            .transition
            .acquire(|| shootdown::serve(core));
        monitor.on_virtualization(&fault, number, &mut memory);
        drop(held);
    }
    Next::Raise(Event::UNDEFINED)
}

/// VMCALL or VMMCALL: the driver's own is answered, any other is undefined.
pub fn call<B: Backend>(core: &Core, registers: &mut GuestRegisters) -> Next {
    let hypervisor = core.hypervisor();
    let guest = B::guest(core);
    let secret = [registers.rax, registers.rdx];
    if guest.cpl != 0
        || !B::long_mode(core)
        || (!seeded::is(Planted::OpenHypercalls)
            && (secret != hypervisor.secret
                || !(hypervisor.image.0..hypervisor.image.1).contains(&guest.rip)))
    {
        return Next::Raise(Event::UNDEFINED);
    }
    let request = Request {
        operation: registers.rcx,
        first: registers.r8,
        second: registers.r9,
    };
    let memory = GuestMemory::new(core, paging(&guest), guest.cr3);
    match hypercall::answer(core, &request, &memory) {
        hypercall::Answer::Value(value) => {
            registers.rax = value;
            Next::Advance
        }
        hypercall::Answer::Leave => {
            if core.state.guest_nmis.load(Ordering::Acquire) > 0 {
                // Passed on first; the guest comes back to this instruction.
                return Next::Resume;
            }
            registers.rax = 0;
            Next::Leave
        }
    }
}

/// The end of an RDMSR: the value, or `None` for #GP.
pub fn finish_rdmsr(registers: &mut GuestRegisters, value: Option<u64>) -> Next {
    match value {
        Some(value) => {
            registers.set_pair(value);
            Next::Advance
        }
        None if seeded::is(Planted::SwallowGp) => {
            registers.set_pair(0);
            Next::Advance
        }
        None if seeded::is(Planted::NeverAdvance) => Next::Resume,
        None => {
            if seeded::is(Planted::ClobberOnGp) {
                registers.rax = 0;
            }
            Next::Raise(Event::GENERAL_PROTECTION)
        }
    }
}

/// Reads a register as the guest asked, once it is known that this may
/// be done as on the bare processor.
#[must_use]
pub fn execute_rdmsr(index: u32, answer: &msr::Answer) -> Option<u64> {
    match *answer {
        msr::Answer::Value(value) => Some(value),
        msr::Answer::GeneralProtection => None,
        // SAFETY: root mode with the host's IDT; reads have no other effect than
        // on the bare processor.
        msr::Answer::Execute | msr::Answer::ExecuteMemoryType => unsafe { instr::try_rdmsr(index) },
    }
}

/// PUSHF under the borrowed trap flag has pushed the borrowed flags: puts those
/// of `before` in their place.
pub fn mend_pushed_flags<B: Backend>(core: &Core, fault: &Fault, before: u64, borrowed: u64) {
    const PUSHF: u8 = 0x9C;
    let memory = GuestMemory::new(core, fault.paging, fault.cr3);
    let mut bytes = [0; 15];
    let Some(here) = memory.translate_code(fault.rip) else {
        return;
    };
    let count = memory.code(fault.rip, &here, &mut bytes);
    let opcode = bytes
        .get(..count)
        .unwrap_or(&[])
        .iter()
        .find(|byte| **byte != 0x66 && **byte & 0xF0 != 0x40);
    if opcode != Some(&PUSHF) {
        return;
    }
    // TF and IF lie in the second byte, which may lie in the next page.
    let second = Gva::new(B::guest(core).rsp.wrapping_add(1));
    let second = memory.translate(second);
    if let Some(second) = second.and_then(|found| memory.operand(found.gpa, 1)) {
        let flags = second.load() << 8 & !borrowed | before & borrowed;
        second.store(flags >> 8);
    }
}
