//! The seam between the neutral code and a vendor's virtual processor.
//!
//! Neutral code ([`crate::violation`], [`crate::hypercall`], [`crate::exit`])
//! decides; what it needs of the virtual processor is here, one implementation
//! for each vendor ([`crate::vmx::Vmx`], [`crate::svm::Svm`]). An exit enters
//! through its vendor's handler and stays there, so the choice is made by the
//! processor itself and the compiler writes each path out; only where a core is
//! reached from elsewhere is [`Features::vendor`] asked.
//!
//! All functions of [`Backend`] are for root mode, on the core that they are
//! called with.

use ept::addr::Hpa;
use ept::entry::{EptFormat, NestedEntry, NptFormat};
use ept::space::Space;

use crate::hypervisor::Hypervisor;
use crate::percpu::Core;
use crate::{svm, vmx};

/// Whose virtualization the processor has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Vendor {
    /// Intel VMX and EPT.
    #[default]
    Intel,
    /// AMD SVM and nested paging.
    Amd,
}

/// What the processor can do that neutral code must know of, or people are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a description of a processor"
)]
pub struct Features {
    /// Whose virtualization it is.
    pub vendor: Vendor,
    /// User-mode and kernel-mode fetches are separate rights: mode-based execute
    /// control, or the guest mode execute trap (see [`Self::one_owner`]).
    pub mbec: bool,
    /// There is an exit after one instruction that the guest cannot notice; else
    /// the trap flag is borrowed.
    pub mtf: bool,
    /// 1 GB leaves may be used.
    pub leaf_1g: bool,
    /// The guest's translations can be flushed without those of others.
    pub flush_one: bool,
    /// Exits of instructions save the next instruction's address (AMD).
    pub next_rip: bool,
    /// Exits save operands and bytes of instructions (AMD).
    pub decode_assists: bool,
}

impl Features {
    /// User-mode and kernel-mode fetches are told apart by AMD's guest mode execute
    /// trap. It differs from Intel's control in two ways: the privilege level of a
    /// fetch decides, where Intel asks whether the linear address is user mode's;
    /// and a leaf is user mode's or the kernel's, so that one may be refused for no
    /// other reason than that the page is the other's.
    #[inline]
    #[must_use]
    pub const fn one_owner(&self) -> bool {
        self.mbec && matches!(self.vendor, Vendor::Amd)
    }
}

/// The guest's registers as far as a decision or a finding needs them.
#[derive(Debug, Clone, Copy, Default)]
pub struct GuestState {
    /// Instruction pointer: an offset into the code segment.
    pub rip: u64,
    /// What is to be added for its linear address: 0 in 64-bit code.
    pub code_base: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags.
    pub rflags: u64,
    /// CR0 as the processor runs with it.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest reads it.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Current privilege level.
    pub cpl: u8,
}

/// A vendor's virtual processor.
pub trait Backend {
    /// The format of the nested tables.
    type Format: NestedEntry + 'static;

    /// The shared nested tables; `None` while the hypervisor is being put
    /// together.
    fn nested(hypervisor: &Hypervisor) -> Option<&Space<'static, Self::Format>>;

    /// The guest's registers.
    fn guest(core: &Core) -> GuestState;

    /// Current privilege level.
    fn cpl(core: &Core) -> u8;

    /// The guest runs 64-bit code.
    fn long_mode(core: &Core) -> bool;

    /// Any of the guest's breakpoints is on: DR7.L0 to G3.
    fn has_breakpoints(core: &Core) -> bool;

    /// The exit interrupted the delivery of an event.
    fn delivering(core: &Core) -> bool;

    /// Moves RIP past an instruction that has been carried out, with what the
    /// processor does at an instruction's end.
    fn advance_by(core: &Core, length: u64);

    /// Runs this core on a private path from the next entry on. The path's tables
    /// may have had other content before.
    fn use_path(core: &Core, root: Hpa);

    /// Runs this core on the shared tables from the next entry on.
    fn use_shared(core: &Core);

    /// Pages are no longer watched: what refuses accesses beside the leaves' own
    /// rights ends on this core, from the next entry on.
    fn stop_trapping(core: &Core);

    /// Arms an exit after the next instruction.
    fn arm_step(core: &Core);

    /// Takes back what [`Self::arm_step`] armed.
    fn disarm_step(core: &Core);
}

/// Invalidates everything derived from the shared tables on this core, at the
/// latest when it enters the guest again.
pub fn invalidate(core: &Core) {
    match core.hypervisor().features.vendor {
        Vendor::Intel => vmx::vcpu::invalidate(core),
        Vendor::Amd => svm::vcpu::invalidate(core),
    }
}

/// The shared nested tables of either format.
#[derive(Debug)]
pub enum Nested {
    /// Intel's.
    Ept(Space<'static, EptFormat>),
    /// AMD's.
    Npt(Space<'static, NptFormat>),
}

/// Calls the same method on the tables of either format.
#[macro_export]
macro_rules! in_either {
    ($nested:expr, $space:ident => $call:expr) => {
        match $nested {
            $crate::backend::Nested::Ept($space) => $call,
            $crate::backend::Nested::Npt($space) => $call,
        }
    };
}
