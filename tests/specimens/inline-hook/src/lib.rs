//! Specimen: an inline hook in `ntoskrnl.exe`, placed through a second mapping.
//!
//! The kernel's code is read-only where it runs, so its page is locked in an MDL
//! and mapped a second time, writable: the write has another linear address than
//! the code, and only its frame says what was hit. The function that is hooked is
//! one that nobody calls at the same time; unload puts the old bytes back.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
#[cfg(feature = "lab-port")]
mod instr;

use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, compiler_fence};

use harness::{KERNEL_MODE, NORMAL_PRIORITY};
use wdk_standin::wdk_sys::{
    _LOCK_OPERATION, _MEMORY_CACHING_TYPE, BOOLEAN, LARGE_INTEGER, NTSTATUS, PCUNICODE_STRING,
    PDRIVER_OBJECT, PLARGE_INTEGER, PMDL, PULONG, PVOID, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_NOT_FOUND, STATUS_SUCCESS, UNICODE_STRING,
    ntddk::{
        IoAllocateMdl, IoFreeMdl, MmGetSystemRoutineAddress, MmMapLockedPagesSpecifyCache,
        MmProbeAndLockPages, MmUnlockPages, MmUnmapLockedPages,
    },
};

const TARGET: &[u8; 25] = b"RtlTimeToSecondsSince1970";
/// What the hooked function answers.
const ANSWER: u32 = 0x0BAD_F00D;

type Target = unsafe extern "C" fn(PLARGE_INTEGER, PULONG) -> BOOLEAN;

/// The bytes that a jump to anywhere takes, as the two stores that place them:
/// eight bytes, then four.
#[derive(Clone, Copy)]
struct Patch {
    first: u64,
    second: u32,
}

/// A second, writable mapping of some bytes of code.
struct Mapping {
    mdl: PMDL,
    at: *mut u8,
}

struct Hook {
    mapping: Mapping,
    old: Patch,
}

struct Cell(UnsafeCell<Option<Hook>>);
// SAFETY: entry and unload never run at the same time.
unsafe impl Sync for Cell {}
static HOOK: Cell = Cell(UnsafeCell::new(None));

/// The driver's entry point.
///
/// # Safety
/// For the loader.
// SAFETY: the linker is told this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
pub unsafe extern "system" fn driver_entry(
    driver: PDRIVER_OBJECT,
    _registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    harness::set_unload(driver, Some(unload));
    let Some(target) = target() else {
        return STATUS_NOT_FOUND;
    };
    let address = target as usize as u64;
    let Some(mapping) = Mapping::of(address) else {
        return STATUS_INSUFFICIENT_RESOURCES;
    };
    harness::announce(c"inline-hook", address);
    let old = mapping.read();
    mapping.write(jump_to(detour as *const () as u64));
    harness::report(
        c"inline-hook",
        c"hooked function answers",
        call(target).into(),
    );
    // SAFETY: only entry and unload touch the cell.
    unsafe { *HOOK.0.get() = Some(Hook { mapping, old }) };
    STATUS_SUCCESS
}

unsafe extern "C" fn unload(_driver: PDRIVER_OBJECT) {
    // SAFETY: only entry and unload touch the cell.
    let hook = unsafe { (*HOOK.0.get()).take() };
    if let Some(hook) = hook {
        hook.mapping.write(hook.old);
        if let Some(target) = target() {
            harness::report(
                c"inline-hook",
                c"restored function answers",
                call(target).into(),
            );
        }
    }
}

/// Where calls of the hooked function arrive.
unsafe extern "C" fn detour(_time: PLARGE_INTEGER, seconds: PULONG) -> BOOLEAN {
    // SAFETY: the caller's pointer.
    unsafe { seconds.write(ANSWER) };
    1
}

fn target() -> Option<Target> {
    let mut name = TARGET.map(u16::from);
    #[expect(clippy::cast_possible_truncation, reason = "50")]
    let bytes = size_of_val(&name) as u16;
    let mut name = UNICODE_STRING {
        Length: bytes,
        MaximumLength: bytes,
        Buffer: name.as_mut_ptr(),
    };
    // SAFETY: PASSIVE_LEVEL; the name outlives the call.
    let address = unsafe { MmGetSystemRoutineAddress(&raw mut name) };
    // SAFETY: null, or the function of that name, which has this signature.
    unsafe { core::mem::transmute::<PVOID, Option<Target>>(address) }
}

/// Calls the function with 1 January 1970, 00:00:42.
fn call(target: Target) -> u32 {
    let mut time = LARGE_INTEGER {
        QuadPart: 116_444_736_000_000_000 + 42 * 10_000_000,
    };
    let mut seconds = 0;
    // SAFETY: both pointers are ours.
    unsafe { target(&raw mut time, &raw mut seconds) };
    seconds
}

/// `mov rax, address; jmp rax`
fn jump_to(address: u64) -> Patch {
    let high = (address >> 48) as u32;
    Patch {
        first: 0xB848 | address << 16,
        second: 0xE0FF << 16 | high,
    }
}

impl Mapping {
    fn of(address: u64) -> Option<Self> {
        const LENGTH: u32 = 12;
        // SAFETY: no IRP; the result is checked.
        let mdl = unsafe { IoAllocateMdl(address as PVOID, LENGTH, 0, 0, core::ptr::null_mut()) };
        if mdl.is_null() {
            return None;
        }
        // SAFETY: kernel code that is resident: reading it cannot be refused.
        unsafe { MmProbeAndLockPages(mdl, KERNEL_MODE, _LOCK_OPERATION::IoReadAccess) };
        // SAFETY: the pages are locked; failure gives null.
        let at = unsafe {
            MmMapLockedPagesSpecifyCache(
                mdl,
                KERNEL_MODE,
                _MEMORY_CACHING_TYPE::MmCached,
                core::ptr::null_mut(),
                0,
                NORMAL_PRIORITY,
            )
        };
        let mapping = Self {
            mdl,
            at: at.cast::<u8>(),
        };
        // Dropping it gives back what there is.
        (!mapping.at.is_null()).then_some(mapping)
    }

    /// The last four bytes.
    fn rest(&self) -> *mut u32 {
        // SAFETY: within the mapping of twelve bytes.
        unsafe { self.at.add(8) }.cast()
    }

    fn read(&self) -> Patch {
        // SAFETY: mapped, and that long.
        let first = unsafe { self.at.cast::<u64>().read_unaligned() };
        // SAFETY: as above.
        let second = unsafe { self.rest().read_unaligned() };
        Patch { first, second }
    }

    fn write(&self, patch: Patch) {
        // SAFETY: mapped and writable.
        unsafe { self.at.cast::<u64>().write_unaligned(patch.first) };
        // The compiler must neither merge the stores nor move the calls before
        // and after them.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: mapped and writable.
        unsafe { self.rest().write_unaligned(patch.second) };
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.at.is_null() {
            // SAFETY: mapped by `of`.
            unsafe { MmUnmapLockedPages(self.at.cast(), self.mdl) };
        }
        // SAFETY: locked by `of`.
        unsafe { MmUnlockPages(self.mdl) };
        // SAFETY: allocated by `of`.
        unsafe { IoFreeMdl(self.mdl) };
    }
}
