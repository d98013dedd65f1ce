//! From the ROM's jump to a running system: the order of initialisation, the panic
//! handler, the start of the executive.

use core::panic::PanicInfo;

use crate::hal::boot::{self, BootBlock};
use crate::hal::{apic, clock, cpu, firmware, instr, ioapic, processors, serial};
use crate::ke::{bugcheck, dispatcher, extended, thread, timer};
use crate::mm;
use crate::mm::PAGE_SIZE;
use crate::ps::process;

/// `MANUALLY_INITIATED_CRASH1`: a panic of the kernel's own code.
const PANIC: u32 = 0xE2;

/// Entry point: the ROM jumps here with interrupts off, on the boot stack.
///
/// # Safety
/// Called once, by the ROM, with the boot block's virtual address.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn KiSystemStartup(block: *mut BootBlock) -> ! {
    serial::initialize();
    // SAFETY: forwarded from the ROM.
    unsafe { boot::initialize(block) };
    // Until the scheduler runs, nothing may interrupt or switch.
    // SAFETY: masking interrupts delays them only.
    unsafe { instr::write_cr8(15) };
    cpu::initialize(0);
    log!(
        "MiniNT at {:#x}, command line \"{}\"",
        boot::kernel_base(),
        boot::cmdline()
    );
    firmware::initialize(true);
    // SAFETY: as above; locks need at most DISPATCH_LEVEL.
    unsafe { instr::write_cr8(2) };
    mm::initialize();
    apic::map();
    let id = apic::initialize(true);
    cpu::of(0)
        .apic_id
        .store(id, core::sync::atomic::Ordering::Release);
    ioapic::initialize();
    clock::initialize();
    extended::initialize();
    dispatcher::initialize();
    timer::initialize();
    process::initialize();
    // The boot stack becomes the stack of the idle thread.
    let top = instr::stack_pointer().next_multiple_of(PAGE_SIZE);
    let bytes = 8 * PAGE_SIZE;
    thread::prepare(0, top - bytes, bytes);
    thread::become_idle(0);
    processors::start_all();
    crate::ke::shared_data::initialize();
    log!(
        "{} processors, TSC {} MHz",
        crate::ke::cpu_count(),
        clock::tsc_hertz() / 1_000_000
    );
    for (routine, what) in [
        (thread::reaper as extern "C" fn(usize), "reaper"),
        (phase1, "phase 1"),
    ] {
        let Some(thread) = thread::create(process::system(), routine, 0) else {
            bugcheck::out_of_memory(what)
        };
        process::reference(thread.process);
        thread::start(thread);
        thread::dereference(thread);
    }
    thread::idle_loop()
}

/// The first system thread, at PASSIVE_LEVEL with everything running.
extern "C" fn phase1(_: usize) {
    log!("phase 1");
    crate::ps::user::start_from_command_line();
    #[cfg(feature = "core-only")]
    crate::selftest::run();
    #[cfg(not(feature = "core-only"))]
    crate::machine::start();
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    log!("*** PANIC {info}");
    bugcheck::raise(PANIC, [0; 4])
}

/// The floating-point marker that the compiler asks for on this target.
#[unsafe(no_mangle)]
pub(crate) static _fltused: i32 = 0;
