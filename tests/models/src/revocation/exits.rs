//! What the hypervisor's handlers do, as far as other cores are concerned.
//!
//! Each function names the one that it follows.

use crate::atomics::{Ordering, interruptible};
use crate::revocation::counters::Counters;
use crate::revocation::guest::{Rights, Use, takes_nmi};
use crate::revocation::hypervisor::Hypervisor;
use crate::revocation::instr::{self, PRIVATE};
use crate::revocation::percpu::{Core, PAGES};
use crate::revocation::shootdown;

/// A VM exit.
fn exit(core: &Core) {
    core.state.look_again.store(0, Ordering::Release);
    if core.hardware.interruptible.get() {
        interruptible(Some(instr::strike));
    }
}

/// A VM entry.
fn enter() {
    interruptible(None);
}

/// `exceptions::hvdetect_root_nmi`, for each NMI that has arrived.
pub fn root_nmi(core: &Core) {
    while takes_nmi(core) {
        handle_nmi(core);
    }
}

fn handle_nmi(core: &Core) {
    assert!(shootdown::take_kick(core), "an invented NMI");
    Counters::bump(&core.counters().kicks_taken);
    shootdown::answer_in_root(core);
}

/// An exit for an NMI, `exit::exception_or_nmi`, if one has arrived.
pub fn guest_nmi(core: &Core) {
    if takes_nmi(core) {
        exit(core);
        assert!(shootdown::take_kick(core), "an invented NMI");
        finish(core);
    }
}

/// `exit::finish`, the last look before the entry, and the entry.
fn finish(core: &Core) {
    let state = &core.state;
    loop {
        if state.step.count.get() > 0 {
            let behind = state.acknowledged.load(Ordering::Relaxed)
                < core.hypervisor().generation.load(Ordering::Acquire);
            if behind || state.step.stale.get() {
                cancel_step(core);
            }
        } else {
            shootdown::serve(core);
        }
        root_nmi(core);
        if state.look_again.swap(0, Ordering::AcqRel) == 0 {
            break;
        }
    }
    // The resume window.
    root_nmi(core);
    enter();
}

/// An exit that concerns this core alone.
pub fn nothing(core: &Core) {
    exit(core);
    finish(core);
}

/// `violation::answer` and the end of its exit.
pub fn violation(core: &Core, page: usize, use_of: Use, own: bool) {
    exit(core);
    answer(core, page, use_of, own);
    finish(core);
}

fn answer(core: &Core, page: usize, use_of: Use, own: bool) {
    let hypervisor = core.hypervisor();
    loop {
        let stepping = core.state.step.count.get() > 0;
        let held = hypervisor.transition.acquire(|| shootdown::serve(core));
        if answer_once(core, hypervisor, page, use_of, own) {
            drop(held);
            if stepping && core.state.step.count.get() == 0 {
                patience(core, hypervisor, page);
            }
            return;
        }
        drop(held);
        shootdown::serve(core);
        instr::pause();
    }
}

/// A core that has given its pages back tries the instruction again at once. That
/// ends only because another core is not always exactly as fast, which loom does
/// not grant; here the core sees the other one's step end first.
fn patience(core: &Core, hypervisor: &Hypervisor, page: usize) {
    while hypervisor.pages[page].rights() == Rights::Stepping {
        shootdown::serve(core);
        instr::pause();
    }
}

/// `violation::answer_once`: `false` asks to wait.
fn answer_once(core: &Core, hypervisor: &Hypervisor, page: usize, use_of: Use, own: bool) -> bool {
    let rights = hypervisor.pages[page].rights();
    if core.state.step.count.get() > 0 {
        during_step(core, hypervisor, page, use_of);
        return true;
    }
    match (use_of, rights) {
        (_, Rights::Stepping) => return false,
        (Use::Fetch, Rights::Writable) => admit_code(core, hypervisor, page),
        (Use::Write, Rights::Executable) => {
            hypervisor.set_rights(page, Rights::Stepping);
            shootdown::revoke(core);
            // The bytes from before the write.
            hypervisor.pages[page].inspect();
            if own {
                core.state.step.pages.set([Some(page), None]);
                core.state.step.count.set(1);
                build_path(core, hypervisor);
                core.state.stepping.store(true, Ordering::Release);
            } else {
                hypervisor.set_rights(page, Rights::Writable);
            }
        }
        _ => {}
    }
    true
}

fn admit_code(core: &Core, hypervisor: &Hypervisor, page: usize) {
    hypervisor.set_rights(page, Rights::Stepping);
    shootdown::revoke(core);
    hypervisor.pages[page].inspect();
    hypervisor.set_rights(page, Rights::Executable);
}

/// `violation::build_path`.
fn build_path(core: &Core, hypervisor: &Hypervisor) {
    let mut entries = [Rights::Stepping; PAGES];
    for (entry, page) in entries.iter_mut().zip(&hypervisor.pages) {
        *entry = page.rights();
    }
    for page in core.state.step.pages.get().into_iter().flatten() {
        entries[page] = Rights::Both;
    }
    core.hardware.private.set(entries);
    // SAFETY: as in hv-core.
    unsafe { instr::invept_single(PRIVATE) };
    core.hardware.on_private.set(true);
    core.state.step.stale.set(false);
}

/// `violation::during_step`: the instruction needs another page as well.
fn during_step(core: &Core, hypervisor: &Hypervisor, page: usize, use_of: Use) {
    let step = &core.state.step;
    match (use_of, hypervisor.pages[page].rights()) {
        (_, Rights::Stepping) => {
            // Another core's: this one gives its pages back first.
            drop_step(core, hypervisor);
            return;
        }
        (Use::Fetch, Rights::Writable) => admit_code(core, hypervisor, page),
        (Use::Write, Rights::Executable) => {
            hypervisor.set_rights(page, Rights::Stepping);
            shootdown::revoke(core);
            hypervisor.pages[page].inspect();
            step.pages.set([step.pages.get()[0], Some(page)]);
            step.count.set(2);
        }
        _ => {}
    }
    build_path(core, hypervisor);
}

/// The instruction has retired: the exit of the monitor trap flag, if a step is
/// under way (`violation::end_step`).
pub fn retired(core: &Core) {
    if core.state.step.count.get() > 0 {
        exit(core);
        cancel_step(core);
        finish(core);
    }
}

/// `violation::cancel_step`, which differs from `end_step` in a counter only.
fn cancel_step(core: &Core) {
    let hypervisor = core.hypervisor();
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    if core.state.step.count.get() > 0 {
        drop_step(core, hypervisor);
    }
    drop(held);
}

fn drop_step(core: &Core, hypervisor: &Hypervisor) {
    let step = &core.state.step;
    core.hardware.on_private.set(false);
    core.state.stepping.store(false, Ordering::Release);
    step.count.set(0);
    for page in step.pages.take().into_iter().flatten() {
        hypervisor.pages[page].inspect();
        hypervisor.set_rights(page, Rights::Executable);
    }
    shootdown::serve(core);
}

/// `exit::init`.
pub fn init(core: &Core) {
    exit(core);
    cancel_step(core);
    shootdown::sleep(core);
    finish(core);
}

/// `exit::sipi`. An NMI is held back while the core waits.
pub fn sipi(core: &Core) {
    exit(core);
    root_nmi(core);
    shootdown::wake(core);
    finish(core);
}

/// `hypercall::answer`, ACTIVATE.
pub fn join(core: &Core) {
    exit(core);
    shootdown::join(core);
    finish(core);
}

/// `hypercall::answer`, LEAVE, and what must hold after it.
pub fn leave(core: &Core) {
    exit(core);
    shootdown::retire(core);
    enter();
    assert!(!takes_nmi(core), "an NMI is left to the guest");
}
