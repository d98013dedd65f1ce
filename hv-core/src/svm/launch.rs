//! Taking one core over: EFER.SVME, a VMCB with the state of now, VMRUN.

use x86::msr;

use super::entry::{self, HostFrame};
use super::msr::{VM_CR, VM_CR_R_INIT, VM_HSAVE_PA};
use super::vcpu::{self, EFER_SVME};
use super::{HOST_SAVE, HOST_VMCB, VMCB};
use crate::error::Step;
use crate::host::leaving::pointer;
use crate::host::paging;
use crate::hypervisor::Hypervisor;
use crate::instr::{self, VmFail};
use crate::percpu::Core;
use crate::seeded;

/// Takes the running core over. Returns as the guest.
///
/// # Errors
/// The step that failed and how; the core is as before.
///
/// # Safety
/// Everything has been built for this core; CPL 0, interrupts off.
pub unsafe fn launch(core: &Core, hypervisor: &Hypervisor) -> Result<(), (Step, VmFail)> {
    let index = core.state.index.get();
    // SAFETY: reads an MSR that every processor in 64-bit mode has.
    let efer = unsafe { instr::rdmsr(msr::IA32_EFER) };
    // SAFETY: exists with SVM.
    let host_save = unsafe { instr::rdmsr(VM_HSAVE_PA) };
    let undo = |step: Step, fail: VmFail| {
        // SAFETY: the values from before.
        unsafe { instr::wrmsr(VM_HSAVE_PA, host_save) };
        // SAFETY: as above.
        unsafe { instr::wrmsr(msr::IA32_EFER, efer) };
        Err((step, fail))
    };
    core.state.host_save.set(host_save);
    // SAFETY: the firmware allows it, as the probe has found.
    unsafe { instr::wrmsr(msr::IA32_EFER, efer | EFER_SVME) };
    if seeded::launch_fails(0, index) {
        return undo(Step::Clear, VmFail::Invalid);
    }
    // SAFETY: a page of the core's own.
    unsafe { instr::wrmsr(VM_HSAVE_PA, core.state.regions_pa[HOST_SAVE].get()) };
    if seeded::launch_fails(1, index) {
        return undo(Step::Load, VmFail::Invalid);
    }
    if seeded::launch_fails(2, index) {
        return undo(Step::Launch, VmFail::Invalid);
    }
    // SAFETY: CPL 0, interrupts are off, the block is complete.
    unsafe { vcpu::fill(core, hypervisor, instr::rflags()) };
    if seeded::launch_fails(3, index) {
        // The host's own, which no processor accepts for a guest.
        vcpu::vmcb(core).control.guest_asid.set(0);
    }
    let frame = host_frame(core, hypervisor);
    // SAFETY: exists with SVM.
    let vm_cr = unsafe { instr::rdmsr(VM_CR) };
    core.state.vm_cr.set(vm_cr);
    // SAFETY: as above; the lock is of other bits.
    unsafe { instr::wrmsr(VM_CR, vm_cr | VM_CR_R_INIT) };
    // SAFETY: SVM is on; the VMCB and root mode's frame are complete.
    match unsafe { entry::launch(vcpu::vmcb(core), &frame) } {
        Ok(()) => Ok(()),
        // Nothing is left to undo.
        Err(entry::Refused) => Err((Step::Launch, VmFail::Refused)),
    }
}

fn host_frame(core: &Core, hypervisor: &Hypervisor) -> HostFrame {
    let rsp = core.stack_pointer();
    for (slot, region) in [(0, VMCB), (8, HOST_VMCB)] {
        // SAFETY: the top of the core's own stack, which nobody uses yet.
        unsafe { instr::store64(rsp + slot, core.state.regions_pa[region].get()) };
    }
    // SAFETY: reads a register at CPL 0.
    let cr4 = unsafe { instr::cr4() };
    HostFrame {
        cr4: paging::cr4(cr4),
        cr3: hypervisor.host_cr3,
        gdt: pointer(
            &raw const core.descriptors.gdt as u64,
            size_of_val(&core.descriptors.gdt) as u64 - 1,
        ),
        idt: pointer(hypervisor.idt, 0xFFF),
        tr: (instr::tr() & !7).into(),
        gs_base: core::ptr::from_ref(core) as u64,
        rsp,
        copy: core.before[0].0.get() as u64,
    }
}
