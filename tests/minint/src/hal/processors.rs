//! Starting the application processors: INIT-SIPI-SIPI, one after the other.
//!
//! Runs once on the bootstrap processor at PASSIVE_LEVEL, before threads run
//! elsewhere. How many to start: `cpus=` on the command line, else all that answer a
//! startup IPI; APIC ids are taken to be 0, 1, 2, … as both emulators number them.
//! Where CMOS names a number (QEMU, whose processors are threads of a busy host and
//! whose time is the host's), those get long to answer.

use core::sync::atomic::{AtomicU32, Ordering};

use super::{apic, boot, clock, cmos, cpu, entry, firmware, instr};
use crate::mm::{paging, physical};

/// Offset of the block that the start code reads.
const BLOCK: u64 = 0xF00;
/// Rounds of 20 us in which a startup IPI is answered; and by a processor that is
/// known to be there.
const ROUNDS: u32 = 100;
const PATIENT_ROUNDS: u32 = 100_000;

static STARTED: AtomicU32 = AtomicU32::new(1);

/// Running processors.
pub fn count() -> u32 {
    STARTED.load(Ordering::Acquire)
}

fn write(offset: u64, value: u64) {
    let at = physical::direct(physical::TRAMPOLINE + BLOCK + offset).cast::<u64>();
    // SAFETY: the start page is low RAM that the page allocator never hands out.
    unsafe { at.write(value) };
}

/// Starts the others and waits until each is up.
#[unsafe(link_section = "INIT")]
pub(crate) fn start_all() {
    let code = entry::startup_code();
    assert!(code.len() as u64 <= BLOCK);
    let page = physical::direct(physical::TRAMPOLINE);
    // SAFETY: as in `write`.
    unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), page, code.len()) };
    let wanted = boot::option_number("cpus")
        .unwrap_or(cpu::MAX_CPUS as u64)
        .min(cpu::MAX_CPUS as u64);
    let known = cmos::processors();
    for number in 1..wanted as u32 {
        let rounds = if u64::from(number) < known {
            PATIENT_ROUNDS
        } else {
            ROUNDS
        };
        if !start(number, rounds) {
            break;
        }
    }
    // What was left in low memory is no code any more.
    physical::fill(physical::TRAMPOLINE, 0);
}

fn start(number: u32, rounds: u32) -> bool {
    let stack = crate::ke::thread::idle_stack(number);
    write(0, paging::startup_root());
    write(8, stack as u64);
    write(16, start_here as *const () as u64);
    write(24, u64::from(number));
    apic::send_init(number);
    clock::stall(50);
    for _ in 0..2 {
        apic::send_startup(number, (physical::TRAMPOLINE >> 12) as u8);
        for _ in 0..rounds {
            if count() > number {
                break;
            }
            clock::stall(20);
        }
    }
    if count() > number {
        return true;
    }
    crate::ke::thread::drop_idle_stack(number);
    false
}

/// Starts a running application processor anew by INIT and startup IPIs, as firmware
/// or a crash kernel does: the drill for a hypervisor's handling of both. Whatever ran
/// on the processor is lost; the caller has put a thread there, at CLOCK_LEVEL, that
/// may be. Returns whether the processor came back. PASSIVE_LEVEL, on another processor.
pub fn restart(number: u32) -> bool {
    assert!(number != 0 && number != crate::ke::current_cpu() && number < count());
    let this = cpu::of(number as usize);
    let code = entry::startup_code();
    let page = physical::direct(physical::TRAMPOLINE);
    // SAFETY: as in `write`.
    unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), page, code.len()) };
    write(0, paging::startup_root());
    write(8, crate::ke::thread::idle_stack_top(number) as u64);
    write(16, start_again as *const () as u64);
    write(24, u64::from(number));
    let id = this.apic_id.load(Ordering::Acquire);
    // Between requests: the processor takes an unanswered one with it.
    crate::ke::ipi::quiesced(|| {
        this.online.store(false, Ordering::Release);
        apic::send_init(id);
        clock::stall(50);
        apic::send_startup(id, (physical::TRAMPOLINE >> 12) as u8);
        for _ in 0..1000 {
            if this.online.load(Ordering::Acquire) {
                break;
            }
            clock::stall(20);
        }
    });
    physical::fill(physical::TRAMPOLINE, 0);
    this.online.load(Ordering::Acquire)
}

/// First instructions of the kernel on a processor that was started anew.
extern "C" fn start_again(number: u32) -> ! {
    arrive(number);
    crate::ke::dispatcher::restarted(number);
    crate::ke::thread::become_idle(number);
    crate::ke::thread::idle_loop()
}

fn arrive(number: u32) {
    // SAFETY: the system's tables map the kernel, this stack and the window like the start-up tables.
    unsafe { instr::write_cr3(paging::system_root()) };
    cpu::initialize(number);
    firmware::initialize(false);
    let id = apic::initialize(false);
    cpu::of(number as usize)
        .apic_id
        .store(id, Ordering::Release);
}

/// First instructions of the kernel on an application processor.
extern "C" fn start_here(number: u32) -> ! {
    arrive(number);
    crate::ke::thread::become_idle(number);
    STARTED.store(number + 1, Ordering::Release);
    crate::ke::thread::idle_loop()
}
