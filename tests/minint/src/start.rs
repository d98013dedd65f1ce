//! First instructions of the kernel, panic handler, global allocator.

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

use crate::hal::boot::{self, BootBlock};
use crate::hal::{power, serial};

/// Entry point: the ROM jumps here with interrupts off, on the boot stack.
///
/// # Safety
/// Called once, by the ROM, with the boot block's virtual address.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn KiSystemStartup(block: *mut BootBlock) -> ! {
    serial::initialize();
    // SAFETY: forwarded from the ROM.
    unsafe { boot::initialize(block) };
    log!("MiniNT at {:#x}, {} bytes, command line \"{}\"", boot::kernel_base(), boot::kernel_size(), boot::cmdline());
    power::exit(0)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    log!("*** PANIC {info}");
    crate::ke::bugcheck::raise(0xE2, [0; 4])
}

struct Pool;

// SAFETY: never gives memory out.
unsafe impl GlobalAlloc for Pool {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Pool = Pool;

/// The floating-point marker that the compiler asks for on this target.
#[unsafe(no_mangle)]
pub(crate) static _fltused: i32 = 0;
