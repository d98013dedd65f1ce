//! Giving a core back: the guest's state into the processor's registers, bit for
//! bit, then SVM off.
//!
//! What #VMEXIT and the launch have replaced is restored here or by the stub
//! (`entry`): descriptor-table registers, segments, CR0, CR2, CR3, CR4, DR6, DR7,
//! PAT, EFER; VMLOAD brings back FS, GS, TR, LDTR and the system-call MSRs, hidden
//! parts included. The global interrupt flag is opened when the guest's IDT is
//! back. AMD APM vol. 2, "#VMEXIT".

use x86::msr;

use super::msr::{VM_CR, VM_HSAVE_PA};
use super::vcpu::{self, EFER_SVME};
use crate::host::leaving::pointer;
use crate::percpu::Core;
use crate::seeded::{self, Planted};
use crate::{instr, shootdown};

/// Restores what the stub does not; it restores the rest and goes on in the guest.
pub fn prepare(core: &Core) {
    shootdown::retire(core);
    let frame = &core.state.leave;
    let state = &vcpu::vmcb(core).state;
    frame.cr3.set(state.cr3.get());
    frame.cr4.set(state.cr4.get());
    frame.gdt.set(pointer(
        state.gdtr.base.get(),
        if seeded::is(Planted::LimitFfff) {
            0xFFFF
        } else {
            state.gdtr.limit.get().into()
        },
    ));
    frame.idt.set(pointer(
        state.idtr.base.get(),
        state.idtr.limit.get().into(),
    ));
    frame.ds.set(state.ds.selector.get().into());
    frame.es.set(state.es.selector.get().into());
    frame.rip.set(state.rip.get());
    frame.cs.set(state.cs.selector.get().into());
    frame.rflags.set(state.rflags.get());
    frame.rsp.set(state.rsp.get());
    frame.ss.set(state.ss.selector.get().into());
    frame.efer.set(if seeded::is(Planted::KeepVmxe) {
        state.efer.get()
    } else {
        state.efer.get() & !EFER_SVME
    });
    if seeded::is(Planted::ForgetGsBase) {
        state.gs.base.set(0);
    }
    let dr7 = if seeded::is(Planted::ForgetDr7) {
        0x400
    } else {
        state.dr7.get()
    };
    // SAFETY: what was there before the launch.
    unsafe { instr::wrmsr(VM_CR, core.state.vm_cr.get()) };
    // SAFETY: as above; no VMRUN follows.
    unsafe { instr::wrmsr(VM_HSAVE_PA, core.state.host_save.get()) };
    // SAFETY: a value that the guest had in this MSR.
    unsafe { instr::wrmsr(msr::IA32_PAT, state.g_pat.get()) };
    if core.hypervisor().svm.controls.shadow_stacks {
        // SAFETY: as above; the MSRs exist.
        unsafe { instr::wrmsr(vcpu::S_CET, state.s_cet.get()) };
        // SAFETY: as above.
        unsafe { instr::wrmsr(vcpu::ISST_ADDR, state.isst_addr.get()) };
    }
    // SAFETY: the guest's own values.
    unsafe { instr::set_cr2(state.cr2.get()) };
    // SAFETY: as above.
    unsafe { instr::set_dr6(state.dr6.get()) };
    // SAFETY: as above.
    unsafe { instr::set_dr7(dr7) };
    // SAFETY: as above.
    unsafe { instr::set_cr0(state.cr0.get()) };
}
