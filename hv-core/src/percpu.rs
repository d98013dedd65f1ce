//! Everything that one core owns in root mode.
//!
//! A [`Core`] is one private region, reached in root mode through the GS base.
//! Three kinds of fields live in it: cells, which only the owning core touches
//! while it is in root mode; atomics, through which cores talk to each other;
//! and pages for the processor (control structures, stacks, tables). Nothing of
//! it is reachable by the guest once the core has been taken over.

use core::cell::{Cell, UnsafeCell};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use ept::private::PrivatePath;
use ept::table::Table;

use crate::counters::Counters;
use crate::host::descriptors::{GDT_SLOTS, Tss};
use crate::host::leaving::LeaveFrame;
use crate::host::window::{Views, Window};
use crate::hypervisor::Hypervisor;
use crate::registers::GuestRegisters;
use crate::step::StepState;

/// A page of bytes.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Page(pub [u8; 4096]);

/// A page of ours that holds a copy of a guest page; only the owning core
/// touches it.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct CopyPage(pub UnsafeCell<[u8; 4096]>);

impl CopyPage {
    /// The copy.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 4096] {
        // SAFETY: the owning core writes the page only while it captures another
        // one, never while a reference is out.
        unsafe { &*self.0.get() }
    }
}

/// Bytes of the root-mode stack.
pub const STACK_BYTES: usize = 32 * 1024;
/// Bytes of each interrupt stack.
pub const INTERRUPT_STACK_BYTES: usize = 4096;

/// Pages of a core that the processor itself works with.
pub const REGIONS: usize = 3;

/// GDT and TSS, one page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Descriptors {
    /// Root mode's GDT.
    pub gdt: [u64; GDT_SLOTS],
    /// The GDT for the moment of leaving: the guest's TSS, available.
    pub leave_gdt: [Cell<u64>; GDT_SLOTS],
    /// Root mode's TSS.
    pub tss: Tss,
}

/// What the core did last when root mode failed; read by people, so plain values.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrashRecord {
    /// 0: none; 1: exception in root mode; 2: VM entry failed; 3: VM-entry
    /// failure exit; 4: exit that cannot be answered.
    pub cause: u32,
    /// Vector, VM-instruction error or exit reason.
    pub number: u64,
    /// Instruction pointer in root mode.
    pub rip: u64,
    /// Error code or exit qualification.
    pub detail: u64,
    /// CR2.
    pub address: u64,
}

/// The first page: state and links.
///
/// The offsets of three fields are known to `vmx::entry` and `instr`.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct CoreState {
    /// Address of this structure (GS:0).
    pub this: Cell<u64>,
    /// Set by the NMI handler when the exit path must look again before it
    /// enters the guest (GS:8).
    pub look_again: AtomicU32,
    /// Core number.
    pub index: Cell<u32>,
    /// This core's counters, in the shared region (GS:16).
    pub counters: Cell<*const Counters>,
    /// The hypervisor that this core belongs to.
    pub hypervisor: Cell<*const Hypervisor>,
    /// Local APIC identifier.
    pub apic_id: Cell<u32>,
    /// In VMX operation and counted on for acknowledgements.
    pub active: AtomicBool,
    /// Waiting for SIPI: invalidates when it wakes up, acknowledges nothing.
    pub quiescent: AtomicBool,
    /// An NMI has been sent to this core as a kick and has not arrived yet.
    pub kick: AtomicBool,
    /// Last generation of the nested tables that this core has acknowledged.
    pub acknowledged: AtomicU64,
    /// NMIs of the guest that arrived and have not been injected.
    pub guest_nmis: AtomicU32,
    /// An NMI has been sent by this core to itself, to come back when the guest can
    /// take its own (AMD).
    pub nmi_window: AtomicBool,
    /// The handler of an NMI that was delivered to the guest has not returned (AMD).
    pub nmi_masked: Cell<bool>,
    /// The guest's IRET is being stepped over (AMD).
    pub iret_step: Cell<bool>,
    /// VM_HSAVE_PA before the launch (AMD).
    pub host_save: Cell<u64>,
    /// VM_CR before the launch (AMD).
    pub vm_cr: Cell<u64>,
    /// INIT has come to root mode and is to be answered (AMD).
    pub init: AtomicBool,
    /// A machine check arrived in root mode and is to be passed on.
    pub machine_check: AtomicBool,
    /// A step on the private path is under way (read by the NMI handler).
    pub stepping: AtomicBool,
    /// The step under way.
    pub step: StepState,
    /// The private path: the tables in [`Core::private`].
    pub path: UnsafeCell<MaybeUninit<PrivatePath<'static>>>,
    /// Window to the local APIC.
    pub apic_window: Cell<Option<Window>>,
    /// Views of guest memory.
    pub views: Views,
    /// Physical addresses of [`Core::regions`].
    pub regions_pa: [Cell<u64>; REGIONS],
    /// What the leave stub restores.
    pub leave: LeaveFrame,
    /// What went wrong.
    pub crash: Cell<CrashRecord>,
}

/// One core's private region.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Core {
    /// State and links.
    pub state: CoreState,
    /// Descriptor tables.
    pub descriptors: Descriptors,
    /// The pages that the processor itself works with; which is which, the vendor
    /// says.
    pub regions: [Page; REGIONS],
    /// Tables of the private path.
    pub private: [Table; ept::private::TABLES],
    /// A stepped page as it was before the step.
    pub before: [CopyPage; crate::step::MAX_PAGES],
    /// Not mapped: catches an overflow of the interrupt stacks.
    pub guard_low: Page,
    /// Interrupt stacks: NMI, double fault, machine check.
    pub interrupt_stacks: [Page; 3],
    /// Not mapped: catches an overflow of the stack.
    pub guard_high: Page,
    /// Root mode's stack, growing down.
    pub stack: [Page; STACK_BYTES / 4096],
}

const _: () = assert!(size_of::<CoreState>() == 4096);
const _: () = assert!(size_of::<Descriptors>() == 4096);
const _: () = assert!(size_of::<Core>() <= 128 * 1024);
const _: () = assert!(core::mem::offset_of!(CoreState, this) == 0);
const _: () = assert!(core::mem::offset_of!(CoreState, look_again) == 8);
const _: () = assert!(core::mem::offset_of!(CoreState, counters) == 16);

/// Offset of the stack pointer of root mode at an exit. Above it are 48 bytes: the
/// frame of IRETQ when leaving, and padding.
pub const STACK_POINTER: usize = core::mem::offset_of!(Core, stack) + STACK_BYTES - 48;

// SAFETY: other cores touch the atomics only; cells belong to the core itself.
unsafe impl Sync for Core {}

impl Core {
    /// The hypervisor that this core belongs to.
    #[must_use]
    pub fn hypervisor(&self) -> &Hypervisor {
        // SAFETY: set before the core is taken over; the hypervisor's region
        // outlives every core's stay in root mode.
        unsafe { &*self.state.hypervisor.get() }
    }

    /// The private path of this core.
    #[must_use]
    pub fn path(&self) -> &PrivatePath<'static> {
        // SAFETY: written once, before the core is taken over.
        let path = unsafe { &*self.state.path.get() };
        // SAFETY: as above.
        unsafe { path.assume_init_ref() }
    }

    /// Root mode's stack pointer at an exit.
    #[must_use]
    pub fn stack_pointer(&self) -> u64 {
        core::ptr::from_ref(self) as u64 + STACK_POINTER as u64
    }

    /// Where the exit stub keeps the guest's registers.
    #[must_use]
    pub fn registers(&self) -> *const GuestRegisters {
        (self.stack_pointer() - size_of::<GuestRegisters>() as u64) as *const GuestRegisters
    }

    /// This core's counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        // SAFETY: set before the core is taken over; the shared region outlives
        // every core's stay in root mode; all of it is atomics.
        unsafe { &*self.state.counters.get() }
    }
}
