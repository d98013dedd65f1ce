//! Processes: an address space with a name, and the threads in it.
//!
//! A process lives while it has threads or someone holds a reference. The list of
//! processes is under its own lock; counts are atomic. IRQL at most DISPATCH_LEVEL,
//! creation and end at PASSIVE_LEVEL.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::ke::dispatcher::{self, Header, object};
use crate::ke::spinlock::SpinLock;
use crate::ke::{thread, wait};
use crate::mm::paging;

/// `KPROCESS` and `EPROCESS`.
#[repr(C)]
#[derive(Debug)]
pub struct Process {
    /// Signalled when the process has ended.
    pub header: Header,
    /// Physical root of its page tables.
    pub root: u64,
    /// Process id.
    pub id: u32,
    /// Image name.
    pub name: &'static str,
    /// Threads that have not ended.
    pub threads: AtomicU32,
    references: AtomicUsize,
    /// Set when it shall end.
    pub terminate: AtomicBool,
    /// Exit code, once it has ended.
    pub exit_code: AtomicI32,
    /// What the program reports of its work (system call `progress`).
    pub progress: AtomicU64,
}

// SAFETY: `header` is guarded by the dispatcher lock, the rest is atomic or constant.
unsafe impl Sync for Process {}
// SAFETY: as above.
unsafe impl Send for Process {}

static SYSTEM: AtomicUsize = AtomicUsize::new(0);
static ALL: SpinLock<Vec<&'static Process>> = SpinLock::new(Vec::new());
/// Ended processes whose objects drivers still hold.
static HELD: SpinLock<Vec<&'static Process>> = SpinLock::new(Vec::new());

/// Drops the processes that drivers held at their end and hold no more; the reaper's.
pub(crate) fn retry_held() {
    let held = core::mem::take(&mut *HELD.lock());
    for process in held {
        dereference(process);
    }
}

/// `PsInitialSystemProcess`.
#[unsafe(no_mangle)]
pub static mut PsInitialSystemProcess: usize = 0;

fn make(root: u64, name: &'static str) -> &'static Process {
    let process = Box::leak(Box::new(Process {
        header: Header::new(),
        root,
        id: thread::next_id(),
        name,
        threads: AtomicU32::new(0),
        references: AtomicUsize::new(1),
        terminate: AtomicBool::new(false),
        exit_code: AtomicI32::new(0),
        progress: AtomicU64::new(0),
    }));
    process
        .header
        .initialize(object::PROCESS, size_of::<Process>(), 0);
    ALL.lock().push(process);
    process
}

/// Makes the System process, id 4.
pub(crate) fn initialize() {
    let process = make(paging::system_root(), "System");
    let address = ptr::from_ref(process) as usize;
    SYSTEM.store(address, Ordering::Release);
    let export = &raw mut PsInitialSystemProcess;
    // SAFETY: no driver runs yet.
    unsafe { export.write(address) };
}

/// The System process.
pub fn system() -> &'static Process {
    // SAFETY: set once by `initialize`, never freed.
    unsafe { &*(SYSTEM.load(Ordering::Acquire) as *const Process) }
}

/// A new process with an empty user half; the caller gets a reference.
pub(crate) fn create(name: &'static str) -> Option<&'static Process> {
    let process = make(paging::new_space()?, name);
    super::process_changed(process.id, true);
    Some(process)
}

/// All processes, each with a reference that the iterator's end drops.
pub fn all() -> Vec<&'static Process> {
    ALL.lock().clone()
}

/// The process with this id, with a reference.
pub fn by_id(id: u32) -> Option<&'static Process> {
    let list = ALL.lock();
    let process = list.iter().find(|process| process.id == id).copied();
    if let Some(process) = process {
        reference(process);
    }
    process
}

/// One more reference.
pub fn reference(process: &Process) {
    process.references.fetch_add(1, Ordering::AcqRel);
}

/// One reference less; the last one frees the address space. PASSIVE_LEVEL.
pub fn dereference(process: &'static Process) {
    if process.references.fetch_sub(1, Ordering::AcqRel) != 1 {
        return;
    }
    #[cfg(not(feature = "core-only"))]
    if crate::ob::forget(ptr::from_ref(process) as usize) {
        // A driver still holds it: the reaper asks again later.
        process.references.store(1, Ordering::Release);
        HELD.lock().push(process);
        return;
    }
    ALL.lock().retain(|other| !ptr::eq(*other, process));
    paging::free_space(process.root);
    // SAFETY: made by `Box::leak`, out of the list, and this was the last reference.
    drop(unsafe { Box::from_raw(ptr::from_ref(process).cast_mut()) });
}

/// The last thread of the process ends, in its own context.
pub(crate) fn ended(process: &'static Process, status: i32) {
    if !process.terminate.load(Ordering::Acquire) {
        process.exit_code.store(status, Ordering::Release);
    }
    super::process_changed(process.id, false);
    ALL.lock().retain(|other| !ptr::eq(*other, process));
    let locked = dispatcher::lock();
    process.header.signal.set(1);
    wait::test(&locked, &process.header, 0);
}
