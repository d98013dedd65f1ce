//! The I/O APIC and the device interrupts behind it.
//!
//! Sixteen ISA lines, each with at most one routine of the kernel, all at
//! DEVICE_LEVEL. The 8259s are masked for good. `connect` runs at PASSIVE_LEVEL;
//! routines run on the processor that was named, at DEVICE_LEVEL.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::instr;
use crate::ke::spinlock::IrqLock;
use crate::mm::{paging, region};

const PHYSICAL: u64 = 0xFEC0_0000;
/// Vector of ISA line 0; line n has this plus n: level 5.
pub(crate) const FIRST_VECTOR: u8 = 0x50;

static PAGE: AtomicUsize = AtomicUsize::new(0);
static ACCESS: IrqLock<()> = IrqLock::new(());
static ROUTINES: [AtomicUsize; 16] = [const { AtomicUsize::new(0) }; 16];

/// Maps the registers and masks everything; once, on the bootstrap processor.
#[unsafe(link_section = "INIT")]
pub(crate) fn initialize() {
    // SAFETY: masks all lines of the two 8259s, which nothing uses.
    unsafe { instr::outb(0x21, 0xFF) };
    // SAFETY: as above.
    unsafe { instr::outb(0xA1, 0xFF) };
    let address = region::SYSTEM
        .reserve(1)
        .expect("address space for the I/O APIC");
    let bits =
        paging::Rights::ReadWrite.kernel_bits() | paging::CACHE_DISABLE | paging::WRITE_THROUGH;
    paging::map_kernel(address, PHYSICAL, bits);
    PAGE.store(address, Ordering::Release);
    for line in 0..16 {
        write(0x10 + 2 * line, 1 << 16);
    }
}

fn write(register: u32, value: u32) {
    let _access = ACCESS.lock();
    let page = PAGE.load(Ordering::Acquire) as *mut u32;
    // SAFETY: the mapped index register.
    unsafe { page.write_volatile(register) };
    // SAFETY: the mapped data register.
    unsafe { page.wrapping_add(4).write_volatile(value) };
}

/// Connects an ISA line (edge-triggered, active high) to a routine on processor `cpu`.
pub fn connect(isa_irq: u8, cpu: u32, routine: fn()) {
    // Bochs and QEMU route ISA line 0 to pin 2, the others one to one.
    let pin = u32::from(if isa_irq == 0 { 2 } else { isa_irq });
    ROUTINES[usize::from(isa_irq)].store(routine as usize, Ordering::Release);
    let apic_id = super::cpu::of(cpu as usize).apic_id.load(Ordering::Acquire);
    write(0x11 + 2 * pin, apic_id << 24);
    write(0x10 + 2 * pin, u32::from(FIRST_VECTOR + isa_irq));
}

/// Runs the routine of the line behind `vector`; false if there is none.
pub(crate) fn dispatch(vector: u8) -> bool {
    let Some(slot) = ROUTINES.get(usize::from(vector.wrapping_sub(FIRST_VECTOR))) else {
        return false;
    };
    let routine = slot.load(Ordering::Acquire);
    if routine == 0 {
        return false;
    }
    // SAFETY: only `connect` writes the word, from a value of this very type.
    let routine: fn() = unsafe { core::mem::transmute(routine) };
    routine();
    true
}
