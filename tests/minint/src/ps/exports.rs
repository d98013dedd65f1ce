//! The `Ps*` exports of the core, and attaching to another address space.

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::Ordering;

use super::process::{self, Process};
use crate::hal::{cpu, instr};
use crate::ke::call::Call;
use crate::ke::dispatcher::object;
use crate::ke::irql::{APC_LEVEL, DISPATCH_LEVEL, PASSIVE_LEVEL, current, require_irql};
use crate::ke::thread::{self, Thread};
use crate::mm::track::{self, Kind};

const STATUS_SUCCESS: i32 = 0;
const STATUS_INSUFFICIENT_RESOURCES: i32 = 0xC000_009A_u32 as i32;
const STATUS_INVALID_PARAMETER: i32 = 0xC000_000D_u32 as i32;
const STATUS_INVALID_CID: i32 = 0xC000_000B_u32 as i32;

fn process_of<'a>(object: *const c_void, api: &str) -> &'a Process {
    require!(!object.is_null(), api, "the process is NULL");
    // SAFETY: the caller vouches for a process object; its type is checked next.
    let process = unsafe { &*object.cast::<Process>() };
    require!(
        process.header.kind.get() == object::PROCESS,
        api,
        "{object:p} is no process"
    );
    process
}

#[cfg(not(feature = "core-only"))]
fn thread_handle(thread: &'static Thread) -> usize {
    crate::ob::insert_handle(
        ptr::from_ref(thread).cast_mut().cast(),
        crate::ob::ObType::Thread,
    ) as usize
}

#[cfg(feature = "core-only")]
fn thread_handle(thread: &'static Thread) -> usize {
    ptr::from_ref(thread) as usize
}

extern "C" fn create_system_thread(call: &Call) -> usize {
    let api = "PsCreateSystemThread";
    require_irql(PASSIVE_LEVEL, api);
    let handle = call.word::<0>() as *mut usize;
    let process = call.word::<3>();
    let client = call.word::<4>() as *mut [usize; 2];
    let (routine, argument) = (call.word::<5>(), call.word::<6>());
    require!(
        !handle.is_null() && routine != 0,
        api,
        "handle {handle:p}, routine {routine:#x}"
    );
    if process != 0 && process != usize::MAX {
        // System threads in other processes are not offered.
        return STATUS_INVALID_PARAMETER as u32 as usize;
    }
    // SAFETY: the routine that the caller named, a PKSTART_ROUTINE.
    let routine: extern "C" fn(usize) = unsafe { core::mem::transmute(routine) };
    let Some(thread) = thread::create(process::system(), routine, argument) else {
        return STATUS_INSUFFICIENT_RESOURCES as u32 as usize;
    };
    thread.creator.set(call.return_address);
    track::add(
        Kind::Thread,
        ptr::from_ref(thread) as usize,
        thread::STACK_BYTES,
        0,
        call.return_address,
    );
    process::reference(thread.process);
    // SAFETY: forwarded to the caller.
    unsafe { handle.write(thread_handle(thread)) };
    if !client.is_null() {
        let ids = [thread.process.id as usize, thread.id as usize];
        // SAFETY: forwarded to the caller.
        unsafe { client.write(ids) };
    }
    super::thread_started(thread);
    thread::start(thread);
    thread::dereference(thread);
    STATUS_SUCCESS as usize
}

with_caller!(
    /// `PsCreateSystemThread`: in the System process.
    PsCreateSystemThread,
    create_system_thread
);

/// `PsTerminateSystemThread`: does not return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsTerminateSystemThread(status: i32) -> i32 {
    let thread = thread::current();
    let system = ptr::eq(thread.process, process::system());
    require!(
        system,
        "PsTerminateSystemThread",
        "the thread is no system thread"
    );
    thread::exit(status)
}

/// `PsIsSystemThread`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsIsSystemThread(object: *mut c_void) -> u8 {
    let thread = thread::from_object(object, "PsIsSystemThread");
    u8::from(ptr::eq(thread.process, process::system()))
}

/// `PsGetCurrentProcess`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetCurrentProcess() -> *mut c_void {
    super::current_process_address() as *mut c_void
}

/// `IoGetCurrentProcess`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IoGetCurrentProcess() -> *mut c_void {
    super::current_process_address() as *mut c_void
}

/// `PsGetCurrentProcessId`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetCurrentProcessId() -> usize {
    thread::current().process.id as usize
}

/// `PsGetCurrentThreadId`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetCurrentThreadId() -> usize {
    thread::current().id as usize
}

/// `PsGetProcessId`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetProcessId(process: *mut c_void) -> usize {
    process_of(process, "PsGetProcessId").id as usize
}

/// `PsGetThreadId`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetThreadId(thread: *mut c_void) -> usize {
    thread::from_object(thread, "PsGetThreadId").id as usize
}

/// `PsGetThreadProcessId`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetThreadProcessId(thread: *mut c_void) -> usize {
    thread::from_object(thread, "PsGetThreadProcessId")
        .process
        .id as usize
}

/// `PsGetThreadProcess` and `IoThreadToProcess`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IoThreadToProcess(thread: *mut c_void) -> *mut c_void {
    let process = thread::from_object(thread, "IoThreadToProcess").process;
    ptr::from_ref(process).cast_mut().cast()
}

/// `PsGetProcessImageFileName`: the name, NUL-terminated, at most 15 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetProcessImageFileName(process: *mut c_void) -> *const u8 {
    // Program names are literals that end with NUL (`programs`), "System" among them.
    process_of(process, "PsGetProcessImageFileName")
        .name
        .as_ptr()
}

/// `PsGetProcessExitStatus`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetProcessExitStatus(process: *mut c_void) -> i32 {
    process_of(process, "PsGetProcessExitStatus")
        .exit_code
        .load(Ordering::Acquire)
}

/// `PsLookupProcessByProcessId`: with a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsLookupProcessByProcessId(id: usize, process: *mut *mut c_void) -> i32 {
    require_irql(APC_LEVEL, "PsLookupProcessByProcessId");
    let Some(found) = process::by_id(id as u32) else {
        return STATUS_INVALID_PARAMETER;
    };
    let object = ptr::from_ref(found).cast_mut().cast::<c_void>();
    adopt(object);
    // The executive's count replaces the one taken by the search.
    process::dereference(found);
    // SAFETY: forwarded to the caller.
    unsafe { process.write(object) };
    STATUS_SUCCESS
}

#[cfg(not(feature = "core-only"))]
fn adopt(object: *mut c_void) {
    crate::ob::reference_foreign(object, crate::ob::ObType::Process);
}

#[cfg(feature = "core-only")]
fn adopt(_: *mut c_void) {}

/// `PsLookupThreadByThreadId`: threads are not searched here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsLookupThreadByThreadId(_id: usize, _thread: *mut *mut c_void) -> i32 {
    STATUS_INVALID_CID
}

/// `KAPC_STATE`, as far as this kernel uses it.
#[repr(C)]
#[derive(Debug)]
pub struct ApcState {
    previous: usize,
    mark: usize,
    rest: [usize; 4],
}

const MARK: usize = 0x4154_5441;

fn use_space(process: Option<&'static Process>) {
    let thread = thread::current();
    let old = crate::ke::irql::raise(DISPATCH_LEVEL.max(current()));
    thread.attached.set(process);
    let root = thread.root();
    cpu::current().root.store(root, Ordering::Relaxed);
    // SAFETY: every address space has the same kernel half.
    unsafe { instr::write_cr3(root) };
    crate::ke::irql::lower(old);
}

/// `KeStackAttachProcess`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeStackAttachProcess(process: *mut c_void, state: *mut ApcState) {
    let api = "KeStackAttachProcess";
    require_irql(DISPATCH_LEVEL, api);
    let process = process_of(process, api);
    let previous = thread::current()
        .attached
        .get()
        .map_or(0, |process| ptr::from_ref(process) as usize);
    // SAFETY: the caller gives memory for a KAPC_STATE.
    unsafe {
        state.write(ApcState {
            previous,
            mark: MARK,
            rest: [0; 4],
        });
    };
    // SAFETY: the caller holds a reference while it is attached.
    use_space(Some(unsafe { &*ptr::from_ref(process) }));
}

/// `KeUnstackDetachProcess`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeUnstackDetachProcess(state: *mut ApcState) {
    let api = "KeUnstackDetachProcess";
    require_irql(DISPATCH_LEVEL, api);
    // SAFETY: what `KeStackAttachProcess` wrote.
    let state = unsafe { state.read() };
    require!(
        state.mark == MARK,
        api,
        "the state does not come from KeStackAttachProcess"
    );
    let previous = state.previous as *const Process;
    // SAFETY: the process that was attached before, still referenced by who attached it.
    use_space((!previous.is_null()).then(|| unsafe { &*previous }));
}
