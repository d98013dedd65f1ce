//! Giving a core back: VMXOFF, and the guest's state into the processor's
//! registers, bit for bit.
//!
//! A VM exit has put root mode's values into many registers; each is restored
//! here or by the stub (`entry`): descriptor-table limits (an exit sets them to
//! FFFFH), the task register (from a private descriptor, since the guest's own is
//! marked busy), segment selectors and bases, CR0, CR3, CR4, DR7 and the MSRs
//! that the VMCS holds. Intel SDM vol. 3, "Loading Host State".

use x86::msr;

use super::fields::{control, guest};
use super::vcpu::read;
use crate::host::descriptors::tss_descriptor;
use crate::host::leaving::pointer;
use crate::percpu::Core;
use crate::seeded::{self, Planted};
use crate::{instr, shootdown};

const CR4_VMXE: u64 = 1 << 13;

/// Leaves VMX operation on this core; the stub restores the rest and goes on in
/// the guest.
pub fn prepare(core: &Core) {
    shootdown::retire(core);
    let hypervisor = core.hypervisor();
    let frame = &core.state.leave;
    let mask = read(control::CR0_GUEST_HOST_MASK);
    let cr0 = read(guest::CR0) & !mask | read(control::CR0_READ_SHADOW) & mask;
    frame.cr3.set(read(guest::CR3));
    let cr4 = read(guest::CR4);
    frame.cr4.set(if seeded::is(Planted::KeepVmxe) {
        cr4
    } else {
        cr4 & !CR4_VMXE
    });
    frame.gdt.set(pointer(
        read(guest::GDTR_BASE),
        if seeded::is(Planted::LimitFfff) {
            0xFFFF
        } else {
            read(guest::GDTR_LIMIT)
        },
    ));
    frame
        .idt
        .set(pointer(read(guest::IDTR_BASE), read(guest::IDTR_LIMIT)));
    frame.tr.set(read(guest::TR_SELECTOR));
    frame.ldtr.set(read(guest::LDTR_SELECTOR));
    frame.ds.set(read(guest::DS_SELECTOR));
    frame.es.set(read(guest::ES_SELECTOR));
    frame.fs.set(read(guest::FS_SELECTOR));
    frame.gs.set(read(guest::GS_SELECTOR));
    frame.fs_base.set(read(guest::FS_BASE));
    frame.gs_base.set(if seeded::is(Planted::ForgetGsBase) {
        0
    } else {
        read(guest::GS_BASE)
    });
    frame.rip.set(read(guest::RIP));
    frame.cs.set(read(guest::CS_SELECTOR));
    frame.rflags.set(read(guest::RFLAGS));
    frame.rsp.set(read(guest::RSP));
    frame.ss.set(read(guest::SS_SELECTOR));

    #[expect(clippy::cast_possible_truncation, reason = "a 32-bit field")]
    let task = tss_descriptor(read(guest::TR_BASE), read(guest::TR_LIMIT) as u32);
    let slot = usize::try_from(read(guest::TR_SELECTOR) >> 3).unwrap_or(0);
    let table = &core.descriptors.leave_gdt;
    for (index, value) in [(slot, task[0]), (slot + 1, task[1])] {
        if let Some(entry) = table.get(index) {
            entry.set(value);
        }
    }
    let limit = size_of_val(table) as u64 - 1;
    frame.private_gdt.set(pointer(table.as_ptr() as u64, limit));

    let dr7 = if seeded::is(Planted::ForgetDr7) {
        0x400
    } else {
        read(guest::DR7)
    };
    let (efer, pat, debugctl) = (
        read(guest::IA32_EFER_FULL),
        read(guest::IA32_PAT_FULL),
        read(guest::IA32_DEBUGCTL_FULL),
    );
    let sysenter = [
        (msr::IA32_SYSENTER_CS, read(guest::IA32_SYSENTER_CS)),
        (msr::IA32_SYSENTER_ESP, read(guest::IA32_SYSENTER_ESP)),
        (msr::IA32_SYSENTER_EIP, read(guest::IA32_SYSENTER_EIP)),
    ];
    let cet = hypervisor.vmx.controls.cet.then(|| {
        (
            read(super::fields::GUEST_S_CET),
            read(super::fields::GUEST_ISST),
        )
    });

    // SAFETY: the core's own VMCS; nothing of it is read after this.
    let _ = unsafe { instr::vmclear(core.state.regions_pa[super::VMCS].get()) };
    // SAFETY: root mode; the guest's state has been read.
    let _ = unsafe { instr::vmxoff() };

    for (index, value) in sysenter {
        // SAFETY: values that the guest had in these MSRs.
        unsafe { instr::wrmsr(index, value) };
    }
    // SAFETY: as above.
    unsafe { instr::wrmsr(msr::IA32_EFER, efer) };
    // SAFETY: as above.
    unsafe { instr::wrmsr(msr::IA32_PAT, pat) };
    if debugctl != 0 {
        // The exit has cleared it.
        // SAFETY: as above; it exists, having held a value.
        unsafe { instr::wrmsr(msr::IA32_DEBUGCTL, debugctl) };
    }
    if let Some((s_cet, isst)) = cet {
        // SAFETY: as above; the MSRs exist.
        unsafe { instr::wrmsr(0x6A2, s_cet) };
        // SAFETY: as above.
        unsafe { instr::wrmsr(0x6A8, isst) };
    }
    // SAFETY: the guest's own values.
    unsafe { instr::set_dr7(dr7) };
    // SAFETY: as above; outside VMX operation NE may be clear.
    unsafe { instr::set_cr0(cr0) };
}
