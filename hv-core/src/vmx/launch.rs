//! Taking one core over: VMXON, a VMCS with the state of now, VMLAUNCH.

use super::entry::{self, LaunchFailure};
use super::vcpu;
use super::{VMCS, VMXON};
use crate::emulate::msr::FEATURE_CONTROL;
use crate::error::Step;
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
    // SAFETY: reads a register at CPL 0.
    let cr0 = unsafe { instr::cr0() };
    // SAFETY: reads a register at CPL 0.
    let cr4 = unsafe { instr::cr4() };
    let undo = |step: Step, fail: VmFail| {
        if step != Step::Enter {
            // SAFETY: VMXON succeeded on this core.
            let _ = unsafe { instr::vmxoff() };
        }
        // SAFETY: the values from before.
        unsafe { instr::set_cr4(cr4) };
        // SAFETY: as above.
        unsafe { instr::set_cr0(cr0) };
        Err((step, fail))
    };
    // SAFETY: one VMCS and VMXON region for each core.
    unsafe { prepare(core, hypervisor) };
    // SAFETY: VMX wants these bits; they are restored on failure and on leaving.
    unsafe { instr::set_cr0(cr0 | hypervisor.vmx.cr0_fixed) };
    // SAFETY: as above.
    unsafe { instr::set_cr4(cr4 | 1 << 13) };
    // SAFETY: CR4.VMXE is set, the region is the core's own.
    let entered = unsafe { instr::vmxon(core.state.regions_pa[VMXON].get()) };
    let index = core.state.index.get();
    if let Err(fail) = entered {
        return undo(Step::Enter, fail);
    }
    if seeded::launch_fails(0, index) {
        return undo(Step::Clear, VmFail::Invalid);
    }
    // SAFETY: in VMX operation; the VMCS is the core's own.
    if let Err(fail) = unsafe { instr::vmclear(core.state.regions_pa[VMCS].get()) } {
        return undo(Step::Clear, fail);
    }
    if seeded::launch_fails(1, index) {
        return undo(Step::Load, VmFail::Invalid);
    }
    // SAFETY: as above.
    if let Err(fail) = unsafe { instr::vmptrld(core.state.regions_pa[VMCS].get()) } {
        return undo(Step::Load, fail);
    }
    if seeded::launch_fails(2, index) {
        return undo(Step::Launch, VmFail::Invalid);
    }
    // SAFETY: a VMCS is current, interrupts are off, the block is complete.
    unsafe { vcpu::fill(core, hypervisor, instr::rflags(), cr0) };
    // SAFETY: root mode; translations of an earlier start may have the same EPTP.
    unsafe { instr::invept_single(hypervisor.vmx.eptp) };
    // SAFETY: as above.
    unsafe { instr::invvpid_single(1) };
    if seeded::launch_fails(3, index) {
        // An activity state that no processor accepts.
        vcpu::write(0x4826, 9);
    }
    // SAFETY: the VMCS is complete but for RSP and RIP.
    if let Err(failure) = unsafe { entry::launch() } {
        let fail = match failure {
            // Nothing is left to undo.
            LaunchFailure::Refused => return Err((Step::Launch, VmFail::Refused)),
            LaunchFailure::Invalid => VmFail::Invalid,
            LaunchFailure::Valid => {
                // SAFETY: VMfailValid: a VMCS is current.
                let number = unsafe { instr::vmread(0x4400) };
                #[expect(clippy::cast_possible_truncation, reason = "a 32-bit field")]
                VmFail::Valid(number as u32)
            }
        };
        return undo(Step::Launch, fail);
    }
    Ok(())
}

/// The regions' revision, and permission for VMXON.
///
/// # Safety
/// Runs on the core, interrupts off, before VMXON.
unsafe fn prepare(core: &Core, hypervisor: &Hypervisor) {
    let revision = hypervisor.vmx.controls.revision;
    for page in [
        &raw const core.regions[VMXON],
        &raw const core.regions[VMCS],
    ] {
        // SAFETY: pages of the core's own, written before the processor uses them.
        unsafe { page.cast::<u32>().cast_mut().write(revision) };
    }
    // SAFETY: IA32_FEATURE_CONTROL exists with VMX.
    let feature_control = unsafe { instr::rdmsr(FEATURE_CONTROL) };
    if feature_control & 1 == 0 {
        // Unlocked by the firmware: VMXON needs it locked with VMX on.
        // SAFETY: the register is not locked.
        unsafe { instr::wrmsr(FEATURE_CONTROL, feature_control | 5) };
    }
}
