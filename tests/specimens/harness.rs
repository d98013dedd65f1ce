//! What every specimen shares: a worker thread, executable pool, and the line
//! that tells the lab what is about to run.
//!
//! Included as a module by each specimen's crate, so that a specimen stays one
//! driver without dependencies of its own. Documented calls only, and everything
//! is given back at unload. Entry and unload run at PASSIVE_LEVEL, one after the
//! other; the worker thread runs between them. No locks.

#![allow(dead_code, reason = "each specimen uses what it needs")]

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, Ordering};

use wdk_standin::wdk_sys::{
    _EVENT_TYPE, _KWAIT_REASON, _MM_PAGE_PRIORITY, _MODE, DRIVER_UNLOAD, HANDLE, KEVENT,
    LARGE_INTEGER, NT_SUCCESS, NTSTATUS, OBJ_KERNEL_HANDLE, OBJECT_ATTRIBUTES, PDRIVER_OBJECT,
    POOL_FLAG_NON_PAGED_EXECUTE, PVOID, STATUS_SUCCESS, STATUS_TIMEOUT, THREAD_ALL_ACCESS, ULONG,
    ntddk::{
        DbgPrintEx, ExAllocatePool2, ExFreePoolWithTag, KeBugCheckEx, KeInitializeEvent,
        KeSetEvent, KeWaitForSingleObject, MmGetPhysicalAddress, ObReferenceObjectByHandle,
        ObfDereferenceObject, PsCreateSystemThread, PsTerminateSystemThread, ZwClose,
    },
};

/// Tag of all pool of the specimens.
pub(crate) const TAG: ULONG = u32::from_le_bytes(*b"Spcm");

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

#[expect(clippy::cast_possible_truncation, reason = "0 or 1")]
pub(crate) const KERNEL_MODE: i8 = _MODE::KernelMode as i8;

/// For mappings that may fail when system address space is scarce.
pub(crate) const NORMAL_PRIORITY: ULONG = _MM_PAGE_PRIORITY::NormalPagePriority as ULONG;

/// Component and level of [`DbgPrintEx`]: other drivers, always shown.
const IHV_DRIVER: ULONG = 77;
const ERROR_LEVEL: ULONG = 0;

/// Says what is about to run, and where: one line in the debugger, and to the
/// lab the physical address of the foreign code.
pub(crate) fn announce(name: &CStr, entry: u64) {
    announce_at(name, entry, physical_address(entry));
}

/// The same of an address that the system does not map.
pub(crate) fn announce_at(name: &CStr, entry: u64, frame: u64) {
    // SAFETY: the format takes a string and two 64-bit numbers.
    unsafe {
        DbgPrintEx(
            IHV_DRIVER,
            ERROR_LEVEL,
            c"specimen %s: entry=0x%llx frame=0x%llx\n".as_ptr(),
            name.as_ptr(),
            entry,
            frame,
        )
    };
    #[cfg(feature = "lab-port")]
    crate::instr::tell_lab(frame);
}

/// Says how it went.
pub(crate) fn report(name: &CStr, what: &CStr, number: u64) {
    // SAFETY: the format takes two strings and a 64-bit number.
    unsafe {
        DbgPrintEx(
            IHV_DRIVER,
            ERROR_LEVEL,
            c"specimen %s: %s %llu\n".as_ptr(),
            name.as_ptr(),
            what.as_ptr(),
            number,
        )
    };
}

/// The physical address behind a resident system address.
pub(crate) fn physical_address(va: u64) -> u64 {
    // SAFETY: the caller's own, resident memory.
    let address = unsafe { MmGetPhysicalAddress(va as PVOID) };
    // SAFETY: all views of the union cover the same eight bytes.
    let address = unsafe { address.QuadPart };
    address.cast_unsigned()
}

/// Nonpaged pool that may be executed: what no driver file brought.
pub(crate) struct CodePages {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the pages belong to whoever holds the value.
unsafe impl Send for CodePages {}

impl CodePages {
    /// Whole pages, page-aligned because they are at least one, filled with INT3.
    pub(crate) fn allocate(pages: usize) -> Option<Self> {
        let bytes = pages * PAGE;
        // SAFETY: IRQL <= DISPATCH_LEVEL; the result is checked.
        let base = unsafe { ExAllocatePool2(POOL_FLAG_NON_PAGED_EXECUTE, bytes as u64, TAG) };
        if base.is_null() {
            return None;
        }
        let base = base.cast::<u8>();
        // SAFETY: the block is ours and that long.
        unsafe { core::ptr::write_bytes(base, 0xCC, bytes) };
        Some(Self { base, bytes })
    }

    /// Puts bytes at an offset. `false` if they do not fit.
    #[must_use]
    pub(crate) fn write(&mut self, offset: usize, code: &[u8]) -> bool {
        let fits = offset
            .checked_add(code.len())
            .is_some_and(|end| end <= self.bytes);
        if fits {
            // SAFETY: within the block.
            let to = unsafe { self.base.add(offset) };
            // SAFETY: as long as the code, which lies elsewhere.
            unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len()) };
        }
        fits
    }

    /// The block as bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the block is ours and that long.
        unsafe { core::slice::from_raw_parts_mut(self.base, self.bytes) }
    }

    /// First address.
    pub(crate) fn address(&self) -> u64 {
        self.base as u64
    }
}

impl Drop for CodePages {
    fn drop(&mut self) {
        // SAFETY: allocated with this tag; nobody runs there any more.
        unsafe { ExFreePoolWithTag(self.base.cast(), TAG) };
    }
}

/// A system thread that can be told to stop.
pub(crate) struct Worker {
    stop: UnsafeCell<MaybeUninit<KEVENT>>,
    thread: AtomicPtr<core::ffi::c_void>,
}

// SAFETY: the event is the kernel's and good for any thread once initialized,
// which happens before there is a second one.
unsafe impl Sync for Worker {}

impl Worker {
    /// No thread.
    pub(crate) const fn new() -> Self {
        Self {
            stop: UnsafeCell::new(MaybeUninit::uninit()),
            thread: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    fn event(&self) -> *mut KEVENT {
        self.stop.get().cast()
    }

    /// Starts the thread; once, from the entry point.
    pub(crate) fn start(&'static self, body: unsafe extern "C" fn(PVOID)) -> NTSTATUS {
        self.start_with(body, core::ptr::null_mut())
    }

    /// The same with a context for the thread.
    pub(crate) fn start_with(
        &'static self,
        body: unsafe extern "C" fn(PVOID),
        context: PVOID,
    ) -> NTSTATUS {
        // SAFETY: nobody uses the event yet.
        unsafe { KeInitializeEvent(self.event(), _EVENT_TYPE::NotificationEvent, 0) };
        #[expect(clippy::cast_possible_truncation, reason = "48")]
        let mut attributes = OBJECT_ATTRIBUTES {
            Length: size_of::<OBJECT_ATTRIBUTES>() as ULONG,
            Attributes: OBJ_KERNEL_HANDLE,
            ..OBJECT_ATTRIBUTES::default()
        };
        let mut handle: HANDLE = core::ptr::null_mut();
        // SAFETY: PASSIVE_LEVEL; unload waits for the thread.
        let status = unsafe {
            PsCreateSystemThread(
                &raw mut handle,
                THREAD_ALL_ACCESS,
                &raw mut attributes,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                Some(body),
                context,
            )
        };
        if !NT_SUCCESS(status) {
            return status;
        }
        let mut thread: PVOID = core::ptr::null_mut();
        // SAFETY: our handle, with all access.
        let status = unsafe {
            ObReferenceObjectByHandle(
                handle,
                THREAD_ALL_ACCESS,
                core::ptr::null_mut(),
                KERNEL_MODE,
                &raw mut thread,
                core::ptr::null_mut(),
            )
        };
        self.thread.store(thread, Ordering::Release);
        // SAFETY: our handle; the reference keeps the object.
        let _ = unsafe { ZwClose(handle) };
        status
    }

    /// Waits. `false` when the thread is to end. For the thread itself.
    pub(crate) fn pause(&self, milliseconds: i64) -> bool {
        let mut time = LARGE_INTEGER {
            QuadPart: -10_000 * milliseconds,
        };
        wait(self.event().cast(), &raw mut time) == STATUS_TIMEOUT
    }

    /// Ends the thread and waits until it has. From unload.
    pub(crate) fn stop(&self) {
        let thread = self.thread.swap(core::ptr::null_mut(), Ordering::AcqRel);
        if thread.is_null() {
            return;
        }
        // SAFETY: initialized by `start`.
        unsafe { KeSetEvent(self.event(), 0, 0) };
        let _ = wait(thread, core::ptr::null_mut());
        // SAFETY: the reference of `start`.
        unsafe { ObfDereferenceObject(thread) };
    }

    /// Ends the calling thread. For the end of its body.
    pub(crate) fn leave() {
        // SAFETY: a system thread of ours with nothing left to drop.
        let _ = unsafe { PsTerminateSystemThread(STATUS_SUCCESS) };
    }
}

fn wait(object: PVOID, time: *mut LARGE_INTEGER) -> NTSTATUS {
    // SAFETY: PASSIVE_LEVEL; the object is live.
    unsafe { KeWaitForSingleObject(object, _KWAIT_REASON::Executive, KERNEL_MODE, 0, time) }
}

/// Makes the driver unloadable.
pub(crate) fn set_unload(driver: PDRIVER_OBJECT, unload: DRIVER_UNLOAD) {
    // SAFETY: the loader's driver object, ours until the entry point returns.
    unsafe { (*driver).DriverUnload = unload };
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: ends the system. Bugcheck code "Spcm".
    unsafe { KeBugCheckEx(TAG, 0, 0, 0, 0) }
}
