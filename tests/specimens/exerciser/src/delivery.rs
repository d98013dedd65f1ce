//! Events whose delivery touches pages in the wrong state.
//!
//! The processor gets tables of this driver's own: IDT, GDT, TSS, an interrupt
//! stack, a stack and the handlers, each in a page of executable pool. Just
//! before an event, pages are brought into the state in which delivery must
//! fault below a W^X hypervisor: data structures are executed from (a RET lies in
//! each), the handlers' page is written to. On the bare machine all that changes
//! nothing, so the lines must be the same.
//!
//! What delivery of an event in 64-bit mode does to these pages (Intel SDM vol.
//! 3, "Exception- and Interrupt-Handling Procedures" and "Stack Switching in
//! IA-32e Mode"): it reads IDT and TSS, so those never fault as long as reading
//! is always allowed; it sets the accessed bit of the code segment's descriptor
//! in the GDT if that is clear, pushes the frame, and fetches the handler. All
//! are tried all the same.
//!
//! Interrupts are off throughout, and CR8 keeps all but the own vector away, so
//! that the kernel sees nothing of it. PASSIVE_LEVEL otherwise.

use crate::apic::Apic;
use crate::events::{self, Event, Record};
use crate::harness::{CodePages, PAGE};
use crate::instr;
use crate::line;
use crate::text::Text;
use crate::trap;

/// Pages of the arena, by number.
const IDT: usize = 0;
const GDT: usize = 1;
const TSS: usize = 2;
const HANDLERS: usize = 3;
/// Two pages each: frames can lie across the boundary.
const INTERRUPT_STACK: usize = 4;
const STACK: usize = 6;
const PAGES: usize = 8;

const RET: u8 = 0xC3;
/// Where a RET lies in a page: the gate of vector 255 in the IDT, behind all
/// that is used in the others.
const RET_AT: usize = 0xFF0;
/// Where it lies in stacks, whose tops are used.
const RET_IN_STACK: usize = 0;

const SYSTEM_TSS: u16 = 0x40;
const KERNEL_CODE: usize = 0x10;
const ACCESSED: u8 = 1;
/// Slot of the interrupt stack table that the kernel leaves free.
const SLOT: u8 = 7;
/// Keeps interrupts of lower classes away.
const CR8_HIGH: u64 = 14;

/// Which pages are brought into the wrong state.
struct Structure {
    name: &'static str,
    pages: &'static [usize],
    /// The frame goes to the interrupt stack.
    interrupt_stack: bool,
    /// The frame lies across two pages.
    crossing: bool,
}

const STRUCTURES: &[Structure] = &[
    Structure {
        name: "nothing",
        pages: &[],
        interrupt_stack: false,
        crossing: false,
    },
    Structure {
        name: "IDT",
        pages: &[IDT],
        interrupt_stack: false,
        crossing: false,
    },
    Structure {
        name: "GDT",
        pages: &[GDT],
        interrupt_stack: false,
        crossing: false,
    },
    Structure {
        name: "TSS",
        pages: &[TSS],
        interrupt_stack: true,
        crossing: false,
    },
    Structure {
        name: "interrupt stack",
        pages: &[INTERRUPT_STACK + 1],
        interrupt_stack: true,
        crossing: false,
    },
    Structure {
        name: "stack",
        pages: &[STACK + 1],
        interrupt_stack: false,
        crossing: false,
    },
    Structure {
        name: "stack across pages",
        pages: &[STACK, STACK + 1],
        interrupt_stack: false,
        crossing: true,
    },
    Structure {
        name: "handler",
        pages: &[HANDLERS],
        interrupt_stack: false,
        crossing: false,
    },
    Structure {
        name: "everything",
        pages: &[
            IDT,
            GDT,
            TSS,
            INTERRUPT_STACK,
            INTERRUPT_STACK + 1,
            STACK,
            STACK + 1,
            HANDLERS,
        ],
        interrupt_stack: true,
        crossing: false,
    },
    Structure {
        name: "everything across pages",
        pages: &[IDT, GDT, TSS, INTERRUPT_STACK, STACK, STACK + 1, HANDLERS],
        interrupt_stack: false,
        crossing: true,
    },
];

struct Arena {
    pages: CodePages,
}

impl Arena {
    fn at(&self, page: usize) -> u64 {
        self.pages.address() + (page * PAGE) as u64
    }

    fn write<T>(&self, page: usize, offset: usize, value: T) {
        let to = (self.at(page) + offset as u64) as *mut T;
        // SAFETY: callers stay within the page, which is ours.
        unsafe { to.write_unaligned(value) };
    }

    /// A descriptor of our GDT.
    fn descriptor(&self, selector: usize) -> u64 {
        let from = (self.at(GDT) + selector as u64) as *const u64;
        // SAFETY: within the page.
        unsafe { from.read_unaligned() }
    }

    fn read_byte(&self, page: usize, offset: usize) -> u8 {
        let from = (self.at(page) + offset as u64) as *const u8;
        // SAFETY: within the page.
        unsafe { from.read_volatile() }
    }

    /// Copies `bytes` from a table of the kernel.
    fn copy(&self, page: usize, from: u64, bytes: usize) {
        let to = self.at(page) as *mut u8;
        // SAFETY: the table is that long and readable; the page is ours.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to, bytes) };
    }

    /// Executes from a page: it is code from then on.
    fn execute(&self, page: usize) {
        let offset = if page >= INTERRUPT_STACK {
            RET_IN_STACK
        } else {
            RET_AT
        };
        let at = self.at(page) + offset as u64;
        // SAFETY: a RET lies there.
        let routine = unsafe { core::mem::transmute::<u64, unsafe extern "C" fn()>(at) };
        // SAFETY: it returns at once.
        unsafe { routine() };
    }
}

/// The kernel's tables, to be put back.
struct Kernel {
    gdt: instr::TableRegister,
    idt: instr::TableRegister,
}

impl Kernel {
    fn gdt_base(&self) -> u64 {
        trap::base(&self.gdt)
    }

    /// Byte of a descriptor that holds its type.
    fn type_of(base: u64, selector: usize) -> *mut u8 {
        (base + selector as u64 + 5) as *mut u8
    }

    /// Base in a system descriptor.
    fn system_base(&self, selector: usize) -> u64 {
        let at = (self.gdt_base() + selector as u64) as *const [u64; 2];
        // SAFETY: within the kernel's GDT.
        let [low, high] = unsafe { at.read_unaligned() };
        low >> 16 & 0xFF_FFFF | low >> 56 << 24 | high << 32
    }
}

fn prepare(arena: &Arena, kernel: &Kernel) {
    const TSS_BYTES: usize = 104;
    arena.copy(IDT, trap::base(&kernel.idt), PAGE);
    arena.copy(GDT, kernel.gdt_base(), usize::from(kernel.gdt[0]) + 1);
    arena.copy(TSS, kernel.system_base(SYSTEM_TSS.into()), TSS_BYTES);
    let tss = arena.at(TSS);
    let low =
        (TSS_BYTES as u64 - 1) | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56;
    arena.write(GDT, SYSTEM_TSS.into(), [low, tss >> 32]);
    // Interrupt stack table: slot 1 is at offset 36.
    let slot = 36 + 8 * (usize::from(SLOT) - 1);
    arena.write(TSS, slot, arena.at(INTERRUPT_STACK) + 2 * PAGE as u64 - 256);
    arena.copy(
        HANDLERS,
        events::handlers().as_ptr() as u64,
        events::handlers().len(),
    );
    for page in [IDT, GDT, TSS, HANDLERS] {
        arena.write(page, RET_AT, RET);
    }
    for page in INTERRUPT_STACK..PAGES {
        arena.write(page, RET_IN_STACK, RET);
    }
}

fn load(arena: &Arena, limit: u16) {
    let gdt = trap::register(arena.at(GDT), limit);
    let idt = trap::register(arena.at(IDT), 0xFFF);
    // SAFETY: a copy of the kernel's with our own TSS.
    unsafe { instr::load_gdt(&gdt) };
    // SAFETY: its descriptor says "available".
    unsafe { instr::load_task(SYSTEM_TSS) };
    // SAFETY: a copy of the kernel's; every event that comes has a gate of ours.
    unsafe { instr::load_idt(&idt) };
}

fn restore(kernel: &Kernel) {
    // SAFETY: the kernel's own.
    unsafe { instr::load_idt(&kernel.idt) };
    // SAFETY: the kernel's own.
    unsafe { instr::load_gdt(&kernel.gdt) };
    let kind = Kernel::type_of(kernel.gdt_base(), SYSTEM_TSS.into());
    // SAFETY: within the kernel's GDT.
    let busy = unsafe { kind.read_volatile() };
    // SAFETY: as above; LTR wants an available TSS.
    unsafe { kind.write_volatile(busy & !2) };
    // SAFETY: the kernel's TSS, available now.
    unsafe { instr::load_task(SYSTEM_TSS) };
}

/// One event with one set of pages in the wrong state.
fn deliver(arena: &Arena, apic: &Apic, event: &Event, structure: &Structure) -> Record {
    let slot = if structure.interrupt_stack {
        SLOT.into()
    } else {
        0
    };
    let handler = arena.at(HANDLERS) + events::gate(event.vector);
    arena.write(
        IDT,
        usize::from(event.vector) * 16,
        trap::gate(handler, slot, 0),
    );
    // The accessed bit is clear: delivery sets it.
    let kind = arena.read_byte(GDT, KERNEL_CODE + 5) & !ACCESSED;
    arena.write(GDT, KERNEL_CODE + 5, kind);
    arena.write(
        GDT,
        events::FRESH_CODE.into(),
        arena.descriptor(KERNEL_CODE),
    );
    // Room for a frame above the boundary, or for 8 bytes of it.
    let above = if structure.crossing { 16 } else { PAGE - 256 };
    let top = arena.at(STACK + 1) + above as u64;
    // Flags with TF, for those events that pop them.
    let below = if structure.crossing { 8 } else { PAGE - 264 };
    arena.write(STACK + 1, below, 0x102_u64);
    events::clear();
    for &page in structure.pages {
        if page == HANDLERS {
            arena.write(HANDLERS, RET_AT, RET);
        } else {
            arena.execute(page);
        }
    }
    match event.kind {
        events::Kind::Interrupt => apic.interrupt(apic.id(), event.vector.into()),
        events::Kind::Nmi | events::Kind::NmiTwice | events::Kind::Instruction => {}
    }
    let send = match event.kind {
        events::Kind::Nmi | events::Kind::NmiTwice => Some(apic),
        _ => None,
    };
    // A RET in the GDT's page: IRET finds that page executable, and has to set the
    // accessed bit of a descriptor in it.
    let stub = arena.at(GDT) + RET_AT as u64;
    let record = events::run(event, top, stub, send);
    if event.kind == events::Kind::Interrupt {
        apic.end_of_interrupt();
    }
    record
}

/// Every event with every structure, `rounds` times.
pub(crate) fn all(text: &mut Text<'_>, rounds: u64) {
    let (Some(pages), Some(apic)) = (CodePages::allocate(PAGES), Apic::map()) else {
        line!(text, "no memory");
        return;
    };
    let arena = Arena { pages };
    for round in 0..rounds.max(1) {
        for event in events::EVENTS {
            // An NMI that comes too early would find its predecessor's frame on the
            // interrupt stack, and neither would ever return.
            let twice = event.kind == events::Kind::NmiTwice;
            let fit = |structure: &&Structure| !(twice && structure.interrupt_stack);
            for structure in STRUCTURES.iter().filter(fit) {
                let record = quietly(&arena, |arena| deliver(arena, &apic, event, structure));
                if round == 0 {
                    line!(
                        text,
                        "{} on {}: {}",
                        event.name,
                        structure.name,
                        record.describe(event)
                    );
                } else if !record.right(event) {
                    line!(
                        text,
                        "round {round}: {} on {}: {}",
                        event.name,
                        structure.name,
                        record.describe(event)
                    );
                }
            }
        }
    }
}

/// Runs `work` with our tables loaded.
fn quietly(arena: &Arena, work: impl FnOnce(&Arena) -> Record) -> Record {
    let on = instr::interrupts_off();
    let level = instr::set_cr8(CR8_HIGH);
    let debug = instr::dr6();
    let kernel = Kernel {
        gdt: instr::gdt(),
        idt: instr::idt(),
    };
    prepare(arena, &kernel);
    load(arena, kernel.gdt[0].max(events::FRESH_CODE + 7));
    let record = work(arena);
    restore(&kernel);
    instr::set_dr6(debug);
    instr::set_cr8(level);
    if on {
        // SAFETY: they were on before.
        unsafe { instr::interrupts_on() };
    }
    record
}
