//! Process and thread notify routines.
//!
//! The core reports each start and end; routines are called at PASSIVE_LEVEL,
//! without a lock. At most 64 of each kind.

use core::sync::atomic::{AtomicUsize, Ordering};

use wdk_standin::wdk_sys::{BOOLEAN, HANDLE, NTSTATUS, PS_CREATE_NOTIFY_INFO, PVOID};

use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::rtl::status::{
    STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER, STATUS_NOT_FOUND, STATUS_SUCCESS,
};

const MOST: usize = 64;

struct Table {
    routines: [AtomicUsize; MOST],
    running: AtomicUsize,
}

impl Table {
    const fn new() -> Self {
        Self {
            routines: [const { AtomicUsize::new(0) }; MOST],
            running: AtomicUsize::new(0),
        }
    }

    fn add(&self, routine: usize) -> NTSTATUS {
        let free = self.routines.iter().find(|slot| {
            slot.compare_exchange(0, routine, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        });
        if free.is_some() {
            STATUS_SUCCESS
        } else {
            STATUS_INSUFFICIENT_RESOURCES
        }
    }

    fn remove(&self, routine: usize) -> bool {
        let found = self.routines.iter().any(|slot| {
            slot.compare_exchange(routine, 0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        });
        // A routine that runs now may be this one.
        while found && self.running.load(Ordering::SeqCst) != 0 {
            super::event::sleep_ms(1);
        }
        found
    }

    fn each(&self, call: &mut dyn FnMut(usize)) {
        let _ = self.running.fetch_add(1, Ordering::SeqCst);
        for slot in &self.routines {
            let routine = slot.load(Ordering::SeqCst);
            if routine != 0 {
                call(routine);
            }
        }
        let _ = self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

static PROCESS: Table = Table::new();
static PROCESS_EX: Table = Table::new();
static THREAD: Table = Table::new();

type ProcessRoutine = unsafe extern "C" fn(HANDLE, HANDLE, BOOLEAN);
type ProcessRoutineEx = unsafe extern "C" fn(PVOID, HANDLE, *mut PS_CREATE_NOTIFY_INFO);
type ThreadRoutine = unsafe extern "C" fn(HANDLE, HANDLE, BOOLEAN);

fn id(number: u32) -> HANDLE {
    core::ptr::without_provenance_mut(number as usize)
}

fn process_changed(pid: u32, created: bool) {
    PROCESS.each(&mut |routine| {
        // SAFETY: only `PCREATE_PROCESS_NOTIFY_ROUTINE` values are stored here.
        let routine: ProcessRoutine = unsafe { core::mem::transmute(routine) };
        // SAFETY: its removal waits for this call.
        unsafe { routine(id(4), id(pid), BOOLEAN::from(created)) };
    });
    let mut process = core::ptr::null_mut();
    // SAFETY: the pointer outlives the call.
    let found = unsafe { PsLookupProcessByProcessId(id(pid), &raw mut process) } >= 0;
    PROCESS_EX.each(&mut |routine| {
        // SAFETY: only `PCREATE_PROCESS_NOTIFY_ROUTINE_EX` values are stored here.
        let routine: ProcessRoutineEx = unsafe { core::mem::transmute(routine) };
        let mut info = PS_CREATE_NOTIFY_INFO {
            Size: size_of::<PS_CREATE_NOTIFY_INFO>() as u64,
            ParentProcessId: id(4),
            ..PS_CREATE_NOTIFY_INFO::default()
        };
        let info = if created {
            &raw mut info
        } else {
            core::ptr::null_mut()
        };
        // SAFETY: its removal waits for this call.
        unsafe { routine(process, id(pid), info) };
    });
    if found {
        let _ = crate::ob::dereference(process, "PsLookupProcessByProcessId");
    }
}

fn thread_changed(pid: u32, tid: u32, created: bool) {
    THREAD.each(&mut |routine| {
        // SAFETY: only `PCREATE_THREAD_NOTIFY_ROUTINE` values are stored here.
        let routine: ThreadRoutine = unsafe { core::mem::transmute(routine) };
        // SAFETY: its removal waits for this call.
        unsafe { routine(id(pid), id(tid), BOOLEAN::from(created)) };
    });
}

unsafe extern "C" {
    fn PsLookupProcessByProcessId(pid: HANDLE, process: *mut PVOID) -> NTSTATUS;
}

/// Asks the core to report. PASSIVE_LEVEL, once.
pub(super) fn start() {
    crate::ps::set_create_hook(process_changed);
    crate::ps::set_thread_hook(thread_changed);
}

/// Calls `visit` with each registered routine.
pub(crate) fn registered(visit: &mut dyn FnMut(usize)) {
    for table in [&PROCESS, &PROCESS_EX, &THREAD] {
        for slot in &table.routines {
            let routine = slot.load(Ordering::Relaxed);
            if routine != 0 {
                visit(routine);
            }
        }
    }
}

fn set(table: &Table, routine: usize, remove: BOOLEAN, api: &str) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, api);
    if routine == 0 {
        return STATUS_INVALID_PARAMETER;
    }
    if remove == 0 {
        return table.add(routine);
    }
    // "STATUS_INVALID_PARAMETER": not registered.
    if table.remove(routine) {
        STATUS_SUCCESS
    } else {
        STATUS_INVALID_PARAMETER
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PsSetCreateProcessNotifyRoutine(
    routine: Option<ProcessRoutine>,
    remove: BOOLEAN,
) -> NTSTATUS {
    let routine = routine.map_or(0, |routine| routine as usize);
    set(&PROCESS, routine, remove, "PsSetCreateProcessNotifyRoutine")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PsSetCreateProcessNotifyRoutineEx(
    routine: Option<ProcessRoutineEx>,
    remove: BOOLEAN,
) -> NTSTATUS {
    let routine = routine.map_or(0, |routine| routine as usize);
    set(
        &PROCESS_EX,
        routine,
        remove,
        "PsSetCreateProcessNotifyRoutineEx",
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PsSetCreateThreadNotifyRoutine(
    routine: Option<ThreadRoutine>,
) -> NTSTATUS {
    let routine = routine.map_or(0, |routine| routine as usize);
    set(&THREAD, routine, 0, "PsSetCreateThreadNotifyRoutine")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PsRemoveCreateThreadNotifyRoutine(
    routine: Option<ThreadRoutine>,
) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "PsRemoveCreateThreadNotifyRoutine");
    let routine = routine.map_or(0, |routine| routine as usize);
    if THREAD.remove(routine) {
        STATUS_SUCCESS
    } else {
        STATUS_NOT_FOUND
    }
}
