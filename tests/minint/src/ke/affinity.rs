//! Processor numbers, counts and thread affinity. One group.
//!
//! Changes of the running thread's affinity take effect before the call returns,
//! if it is below DISPATCH_LEVEL.

use core::ffi::c_void;

use super::dispatcher;
use super::irql::{self, DISPATCH_LEVEL, require_irql};
use super::thread;

const STATUS_INVALID_PARAMETER: i32 = 0xC000_000D_u32 as i32;
/// `ALL_PROCESSOR_GROUPS`.
const ALL_GROUPS: u16 = 0xFFFF;

/// `PROCESSOR_NUMBER`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProcessorNumber {
    /// Group, always 0.
    pub group: u16,
    /// Number in the group.
    pub number: u8,
    /// 0.
    pub reserved: u8,
}

/// `GROUP_AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupAffinity {
    mask: u64,
    group: u16,
    reserved: [u16; 3],
}

/// Sets the running thread's affinity and moves it.
fn set_current(affinity: u64) -> u64 {
    let current = thread::current();
    let old = {
        let locked = dispatcher::lock();
        let old = current.affinity.get();
        dispatcher::set_affinity(&locked, current, affinity);
        old
    };
    if irql::current() < DISPATCH_LEVEL && affinity >> super::current_cpu() & 1 == 0 {
        dispatcher::yield_now();
    }
    old
}

/// System affinity: remembers the first affinity for the way back.
fn set_system(affinity: u64) -> u64 {
    let current = thread::current();
    let before = current.user_affinity.get();
    let old = set_current(affinity);
    if before == 0 {
        current.user_affinity.set(old);
        0
    } else {
        old
    }
}

fn revert(affinity: u64) {
    let current = thread::current();
    if affinity == 0 {
        let user = current.user_affinity.replace(0);
        if user != 0 {
            set_current(user);
        }
    } else {
        set_current(affinity);
    }
}

/// `KeSetSystemAffinityThread`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetSystemAffinityThread(affinity: u64) {
    // SAFETY: the same, without the result.
    unsafe { KeSetSystemAffinityThreadEx(affinity) };
}

/// `KeSetSystemAffinityThreadEx`: the system affinity before, 0 if there was none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetSystemAffinityThreadEx(affinity: u64) -> u64 {
    let api = "KeSetSystemAffinityThreadEx";
    require_irql(DISPATCH_LEVEL, api);
    let affinity = affinity & thread::all_cpus();
    require!(affinity != 0, api, "no running processor in the mask");
    set_system(affinity)
}

/// `KeRevertToUserAffinityThread`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRevertToUserAffinityThread() {
    require_irql(DISPATCH_LEVEL, "KeRevertToUserAffinityThread");
    revert(0);
}

/// `KeRevertToUserAffinityThreadEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRevertToUserAffinityThreadEx(affinity: u64) {
    require_irql(DISPATCH_LEVEL, "KeRevertToUserAffinityThreadEx");
    revert(affinity);
}

/// `KeSetSystemGroupAffinityThread`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetSystemGroupAffinityThread(
    affinity: *const GroupAffinity,
    previous: *mut GroupAffinity,
) {
    let api = "KeSetSystemGroupAffinityThread";
    require_irql(DISPATCH_LEVEL, api);
    // SAFETY: forwarded to the caller.
    let wanted = unsafe { affinity.read() };
    let valid =
        wanted.group == 0 && wanted.reserved == [0; 3] && wanted.mask & !thread::all_cpus() == 0;
    require!(
        wanted.reserved == [0; 3],
        api,
        "the reserved fields are not 0"
    );
    // An affinity of no processor, or of an absent one, changes nothing; the
    // previous affinity is then 0.
    let old = if valid && wanted.mask != 0 {
        set_system(wanted.mask)
    } else {
        0
    };
    if !previous.is_null() {
        // SAFETY: forwarded to the caller.
        unsafe {
            previous.write(GroupAffinity {
                mask: old,
                ..GroupAffinity::default()
            });
        };
    }
}

/// `KeRevertToUserGroupAffinityThread`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRevertToUserGroupAffinityThread(previous: *const GroupAffinity) {
    require_irql(DISPATCH_LEVEL, "KeRevertToUserGroupAffinityThread");
    // SAFETY: forwarded to the caller.
    let previous = unsafe { previous.read() };
    revert(previous.mask & thread::all_cpus());
}

/// `KeSetAffinityThread`: the affinity before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetAffinityThread(object: *mut c_void, affinity: u64) -> u64 {
    let api = "KeSetAffinityThread";
    require_irql(DISPATCH_LEVEL, api);
    let target = thread::from_object(object, api);
    let affinity = affinity & thread::all_cpus();
    require!(affinity != 0, api, "no running processor in the mask");
    let locked = dispatcher::lock();
    let old = target.affinity.get();
    // SAFETY: `from_object` gave a live thread, which the caller holds a reference to.
    let target: &'static thread::Thread = unsafe { &*core::ptr::from_ref(target) };
    dispatcher::set_affinity(&locked, target, affinity);
    old
}

/// `KeGetCurrentProcessorNumberEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeGetCurrentProcessorNumberEx(number: *mut ProcessorNumber) -> u32 {
    let current = super::current_cpu();
    if !number.is_null() {
        // SAFETY: forwarded to the caller.
        unsafe {
            number.write(ProcessorNumber {
                group: 0,
                number: current as u8,
                reserved: 0,
            });
        };
    }
    current
}

/// `KeGetCurrentProcessorNumber`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeGetCurrentProcessorNumber() -> u32 {
    super::current_cpu()
}

/// `KeGetProcessorNumberFromIndex`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeGetProcessorNumberFromIndex(
    index: u32,
    number: *mut ProcessorNumber,
) -> i32 {
    if index >= super::cpu_count() {
        return STATUS_INVALID_PARAMETER;
    }
    // SAFETY: forwarded to the caller.
    unsafe {
        number.write(ProcessorNumber {
            group: 0,
            number: index as u8,
            reserved: 0,
        });
    };
    0
}

/// `KeGetProcessorIndexFromNumber`: `INVALID_PROCESSOR_INDEX` if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeGetProcessorIndexFromNumber(number: *const ProcessorNumber) -> u32 {
    // SAFETY: forwarded to the caller.
    let number = unsafe { number.read() };
    if number.group != 0 || number.reserved != 0 || u32::from(number.number) >= super::cpu_count() {
        return u32::MAX;
    }
    u32::from(number.number)
}

/// `KeQueryActiveProcessorCount`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryActiveProcessorCount(mask: *mut u64) -> u32 {
    if !mask.is_null() {
        // SAFETY: forwarded to the caller.
        unsafe { mask.write(thread::all_cpus()) };
    }
    super::cpu_count()
}

/// `KeQueryActiveProcessorCountEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryActiveProcessorCountEx(group: u16) -> u32 {
    if group == 0 || group == ALL_GROUPS {
        super::cpu_count()
    } else {
        0
    }
}

/// `KeQueryMaximumProcessorCount`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryMaximumProcessorCount() -> u32 {
    super::cpu_count()
}

/// `KeQueryMaximumProcessorCountEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryMaximumProcessorCountEx(group: u16) -> u32 {
    if group == 0 || group == ALL_GROUPS {
        super::cpu_count()
    } else {
        0
    }
}

/// `KeQueryActiveProcessors`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryActiveProcessors() -> u64 {
    thread::all_cpus()
}

/// `KeQueryGroupAffinity`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryGroupAffinity(group: u16) -> u64 {
    if group == 0 { thread::all_cpus() } else { 0 }
}

/// `KeQueryActiveGroupCount`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryActiveGroupCount() -> u16 {
    1
}

/// `KeQueryMaximumGroupCount`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryMaximumGroupCount() -> u16 {
    1
}

/// `KeQueryHighestNodeNumber`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryHighestNodeNumber() -> u16 {
    0
}

/// `KeGetCurrentNodeNumber`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeGetCurrentNodeNumber() -> u16 {
    0
}
