//! What root mode asks when a page is about to change its role.
//!
//! The hypervisor knows pages, cores and rights; whose code a page holds is the
//! [`Monitor`]'s knowledge. Its methods are called **in root mode**, on the core
//! that faulted, with the transition lock held: no NT call, no allocation, no
//! blocking, no panic, bounded time. They may read guest memory only through the
//! [`Guest`] they are given.

use ept::addr::{Gpa, Gva};

use crate::walk::Paging;

/// Why the hypervisor asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// An instruction fetch from a page that was not executable. It has not
    /// been executed; the page is neither writable nor executable on any core.
    Fetch,
    /// One write to an executable page, seen whole: the instruction has retired,
    /// `before` and the page as it is now differ from `offset` on.
    Written,
}

/// The state of the core that faulted, and the fault.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// What happened.
    pub crossing: Crossing,
    /// Guest-physical address that was accessed.
    pub gpa: Gpa,
    /// Guest-linear address that was accessed; `None` when the processor gives
    /// none (page walks, asynchronous accesses).
    pub gla: Option<Gva>,
    /// Instruction pointer at the fault (of the writing instruction for
    /// [`Crossing::Written`]).
    pub rip: Gva,
    /// Stack pointer.
    pub rsp: Gva,
    /// Flags register.
    pub rflags: u64,
    /// CR3 with its low bits as the guest has it.
    pub cr3: u64,
    /// How the guest translates linear addresses.
    pub paging: Paging,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// IA-32e mode is active (EFER.LMA), whatever the code segment's width.
    pub long_mode: bool,
    /// The page that holds the instruction is the page that was written.
    pub own_page: bool,
    /// Time-stamp counter.
    pub tsc: u64,
    /// Core number, as [`crate::platform::Platform`] counts them.
    pub core: u32,
    /// General registers in encoding order (RAX, RCX, RDX, RBX, RSP, RBP, RSI,
    /// RDI, R8 to R15).
    pub gprs: [u64; 16],
}

/// What changed on a page that was written: the first byte that differs, and the
/// bytes there before and now.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// Offset of the first changed byte in the page, 0 to 4095.
    pub offset: u16,
    /// Number of bytes from the first to the last changed one, 1 to 4096.
    pub length: u16,
    /// Bytes before, from `offset` on; zero past the page's end.
    pub old: [u8; 32],
    /// Bytes now.
    pub new: [u8; 32],
}

/// Access to the memory of the guest whose core faulted. Reads touch RAM only,
/// never device memory, and never fault.
pub trait Guest {
    /// Copies the 4 KB page that holds `gpa`. `false` when it is no RAM.
    fn read_page(&mut self, gpa: Gpa, page: &mut [u8; 4096]) -> bool;

    /// Where a linear address leads through the guest's page tables; `None` when
    /// it is not mapped.
    fn translate(&mut self, gva: Gva) -> Option<Gpa>;

    /// Reads eight bytes at a linear address through the guest's page tables.
    fn read_u64(&mut self, gva: Gva) -> Option<u64>;
}

/// What the hypervisor must know of a page before it plans a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageRole {
    /// Nobody's code: a write makes it a data page.
    Anonymous,
    /// A page of a registered module's code: each write is stepped and compared.
    ModuleCode,
}

/// The policy, called in root mode.
///
/// # Safety
///
/// The implementation keeps the rules of root mode (see the module's text).
pub unsafe trait Monitor: Sync {
    /// Whether a frame belongs to a registered module's code.
    fn role(&self, gpa: Gpa) -> PageRole;

    /// A page is about to become executable. The return value is whether it was
    /// reported.
    fn on_fetch(&self, fault: &Fault, guest: &mut dyn Guest) -> bool;

    /// A write to an executable page has been carried out and compared.
    fn on_written(&self, fault: &Fault, difference: &Difference, guest: &mut dyn Guest) -> bool;

    /// The guest executed an instruction of VMX (it gets #UD). `instruction` is
    /// the basic exit reason.
    fn on_virtualization(&self, fault: &Fault, instruction: u16, guest: &mut dyn Guest) {
        let _ = (fault, instruction, guest);
    }

    /// A page of data for the monitor arrived from the driver (a hypercall):
    /// `index` counts pages from 0. `false` refuses it.
    fn receive(&self, index: u32, page: &[u8; 4096]) -> bool;

    /// The driver says that `bytes` bytes have been sent and are to be used from
    /// now on.
    fn commit(&self, bytes: u64) -> bool;

    /// Names the frames that were a module's code before the last commit and are
    /// none any more: they lose the right to be executed unasked.
    fn forgotten(&self, each: &mut dyn FnMut(Gpa)) {
        let _ = each;
    }
}
