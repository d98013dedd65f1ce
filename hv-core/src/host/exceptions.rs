//! What happens when something interrupts root mode: NMIs and exceptions.
//!
//! An **NMI** is a kick from another core, or the guest's own. A kick is answered
//! at once: invalidate and acknowledge, whatever was interrupted, since a core in
//! root mode uses no nested translation. While a step is under way the answer
//! waits for the step's end, because the private path may hold rights that were
//! just revoked. A guest's NMI is counted for the exit path to inject.
//!
//! An **INIT**, which AMD's processors redirect to an exception, is answered at the end
//! of the exit.
//!
//! A **machine check** that can be survived is passed on to the guest, whose
//! handler decides.
//!
//! Any other **exception** is expected at the instructions of `instr`'s table only; any
//! other is a defect of ours. Then the core records it, stops watching pages,
//! and gives the guest a double fault, so that the operating system writes its
//! dump: better than a machine that stands still.

use core::sync::atomic::Ordering;

use crate::backend::Vendor;
use crate::counters::Counters;
use crate::percpu::{Core, CrashRecord};
use crate::{instr, shootdown, svm, vmx};

/// Vector of #SX, which AMD's processors have (AMD APM vol. 2, "#SX - Security
/// Exception").
const SECURITY: u64 = 30;
/// Its error code for INIT.
const REDIRECTED_INIT: u64 = 1;

/// Stack frame of an exception, as the stubs complete it.
#[repr(C)]
#[derive(Debug)]
pub struct ExceptionFrame {
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

#[unsafe(no_mangle)]
extern "win64" fn hvdetect_root_nmi(in_resume_window: u64) {
    // SAFETY: the stubs run with the core's GS base.
    let core = unsafe { current() };
    let state = &core.state;
    if shootdown::take_kick(core) {
        Counters::bump(&core.counters().kicks_taken);
        // A step ends after one instruction, so no exit has to be forced.
        shootdown::answer_in_root(core);
        return;
    }
    if state.nmi_window.swap(false, Ordering::AcqRel) {
        return;
    }
    state.guest_nmis.fetch_add(1, Ordering::AcqRel);
    state.look_again.store(1, Ordering::Release);
    if in_resume_window != 0 {
        // Only Intel's stub has this window.
        // SAFETY: no VMCS access is under way in the resume window.
        unsafe { vmx::vcpu::open_nmi_window() };
    }
}

#[unsafe(no_mangle)]
extern "win64" fn hvdetect_root_exception(frame: &mut ExceptionFrame) {
    // SAFETY: the stubs run with the core's GS base.
    let core = unsafe { current() };
    if matches!(frame.vector, 6 | 13)
        && let Some(landing) = instr::fixup(frame.rip)
    {
        Counters::bump(&core.counters().recovered);
        frame.rip = landing;
        return;
    }
    if frame.vector == SECURITY && frame.error_code == REDIRECTED_INIT {
        core.state.init.store(true, Ordering::Release);
        core.state.look_again.store(1, Ordering::Release);
        return;
    }
    if frame.vector == 18 && restartable() {
        // The guest's machine check handler decides; interrupted root mode goes
        // on (Intel SDM vol. 3, "Machine-Check Global Status").
        core.state.machine_check.store(true, Ordering::Release);
        core.state.look_again.store(1, Ordering::Release);
        return;
    }
    hvdetect_root_failed(core, frame)
}

/// A defect of ours: nothing of the interrupted code is gone back to. (A function of
/// its own: the other ways through the handler keep the vector registers.)
#[inline(never)]
#[unsafe(no_mangle)]
extern "win64" fn hvdetect_root_failed(core: &Core, frame: &ExceptionFrame) -> ! {
    // SAFETY: reads CR2 at CPL 0.
    let address = unsafe { instr::cr2() };
    core.state.crash.set(CrashRecord {
        cause: 1,
        number: frame.vector,
        rip: frame.rip,
        detail: frame.error_code,
        address,
    });
    crate::trace!(
        "root exception",
        frame.vector,
        frame.rip,
        address,
        frame.error_code,
        frame.rsp
    );
    match core.hypervisor().features.vendor {
        // SAFETY: root mode; nothing of the interrupted code is gone back to.
        Vendor::Intel => unsafe { vmx::vcpu::give_up(core) },
        // SAFETY: as above.
        Vendor::Amd => unsafe { svm::vcpu::give_up(core) },
    }
}

/// IA32_MCG_STATUS.RIPV.
fn restartable() -> bool {
    // SAFETY: root mode with the host's IDT; a machine check implies the MSR.
    unsafe { instr::try_rdmsr(0x17A) }.is_some_and(|status| status & 1 != 0)
}

/// The core that runs this.
///
/// # Safety
/// Root mode: the GS base is the core's own.
#[must_use]
pub unsafe fn current<'a>() -> &'a Core {
    // SAFETY: GS:0 holds the address of the core's own state.
    let this = unsafe { instr::gs_self() };
    // SAFETY: the region lives for as long as the core is in root mode.
    unsafe { &*(this as *const Core) }
}
