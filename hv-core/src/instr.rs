//! The privileged instructions, one wrapper each: the only inline assembly of
//! this crate beside the entry stubs.
//!
//! Every wrapper is an `unsafe fn` whose contract is one line: an instruction
//! that changes the machine is never safe, whatever its arguments. VMX
//! instructions report failure through RFLAGS, which are read in the same
//! assembly block: between two blocks the compiler may change them (Intel SDM
//! vol. 3, "VMX Instruction Reference", conventions).

use core::arch::{asm, global_asm};

use crate::host::descriptors::gate;

/// How a VMX instruction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmFail {
    /// VMfailInvalid: there is no current VMCS.
    Invalid,
    /// VMfailValid: the number of the VM-instruction error (1 to 28).
    Valid(u32),
    /// The instruction went on to a VM entry, which refused the guest's state (an
    /// exit with reason 33 or 34).
    Refused,
}

/// Pseudo-descriptor of LGDT, LIDT, SGDT and SIDT in 64-bit mode.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, Default)]
pub struct TablePointer {
    /// Offset of the table's last byte.
    pub limit: u16,
    /// Linear address of the table.
    pub base: u64,
}

macro_rules! read_register {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Runs at CPL 0 in 64-bit mode.
        #[inline]
        #[must_use]
        pub unsafe fn $name() -> u64 {
            let value: u64;
            // SAFETY: reads a register; CPL 0 is the caller's promise.
            unsafe { asm!($text, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}

macro_rules! write_register {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Runs at CPL 0; the value is legal and what it changes is wanted.
        #[inline]
        pub unsafe fn $name(value: u64) {
            // SAFETY: legality of the value is the caller's promise.
            unsafe { asm!($text, in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

read_register!(/// Reads CR0.
    cr0, "mov {}, cr0");
read_register!(/// Reads CR2.
    cr2, "mov {}, cr2");
read_register!(/// Reads CR3.
    cr3, "mov {}, cr3");
read_register!(/// Reads CR4.
    cr4, "mov {}, cr4");
read_register!(/// Reads DR7.
    dr7, "mov {}, dr7");
write_register!(/// Writes CR0.
    set_cr0, "mov cr0, {}");
write_register!(/// Writes CR2.
    set_cr2, "mov cr2, {}");
write_register!(/// Writes CR4.
    set_cr4, "mov cr4, {}");
read_register!(/// Reads DR6.
    dr6, "mov {}, dr6");
write_register!(/// Writes DR6.
    set_dr6, "mov dr6, {}");
write_register!(/// Writes DR7.
    set_dr7, "mov dr7, {}");

macro_rules! store {
    ($(#[$doc:meta])* $name:ident, $type:ty, $register:ident, $text:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The bytes are writable and nobody holds a reference to them.
        #[inline]
        pub unsafe fn $name(address: u64, value: $type) {
            // SAFETY: the caller's promise; the processor stores at any alignment.
            unsafe { asm!($text, in(reg) address, in($register) value, options(nostack, preserves_flags)) };
        }
    };
}

macro_rules! load {
    ($(#[$doc:meta])* $name:ident, $type:ty, $register:ident, $text:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The bytes are readable.
        #[inline]
        #[must_use]
        pub unsafe fn $name(address: u64) -> $type {
            let value: $type;
            // SAFETY: the caller's promise; the processor loads at any alignment.
            unsafe { asm!($text, out($register) value, in(reg) address, options(nostack, preserves_flags, readonly)) };
            value
        }
    };
}

load!(/// Loads a byte.
    load8, u8, reg_byte, "mov {}, byte ptr [{}]");
load!(/// Loads two bytes by one instruction.
    load16, u16, reg, "mov {:x}, word ptr [{}]");
load!(/// Loads four bytes by one instruction.
    load32, u32, reg, "mov {:e}, dword ptr [{}]");
load!(/// Loads eight bytes by one instruction.
    load64, u64, reg, "mov {}, qword ptr [{}]");
store!(/// Stores a byte.
    store8, u8, reg_byte, "mov byte ptr [{}], {}");
store!(/// Stores two bytes by one instruction.
    store16, u16, reg, "mov word ptr [{}], {:x}");
store!(/// Stores four bytes by one instruction.
    store32, u32, reg, "mov dword ptr [{}], {:e}");
store!(/// Stores eight bytes by one instruction.
    store64, u64, reg, "mov qword ptr [{}], {}");

macro_rules! read_selector {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[inline]
        #[must_use]
        pub fn $name() -> u16 {
            let value: u16;
            // SAFETY: reads a selector, legal at every privilege level without UMIP
            // and at CPL 0 always; nothing changes.
            unsafe { asm!($text, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}

read_selector!(/// Selector in CS.
    cs, "mov {:x}, cs");
read_selector!(/// Selector in SS.
    ss, "mov {:x}, ss");
read_selector!(/// Selector in DS.
    ds, "mov {:x}, ds");
read_selector!(/// Selector in ES.
    es, "mov {:x}, es");
read_selector!(/// Selector in FS.
    fs, "mov {:x}, fs");
read_selector!(/// Selector in GS.
    gs, "mov {:x}, gs");
read_selector!(/// Selector in the task register.
    tr, "str {:x}");
read_selector!(/// Selector in the LDT register.
    ldtr, "sldt {:x}");

/// Stores the GDT register.
#[must_use]
pub fn sgdt() -> TablePointer {
    let mut pointer = TablePointer::default();
    // SAFETY: writes ten bytes to a local.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut pointer, options(nostack, preserves_flags)) };
    pointer
}

/// Stores the IDT register.
#[must_use]
pub fn sidt() -> TablePointer {
    let mut pointer = TablePointer::default();
    // SAFETY: writes ten bytes to a local.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut pointer, options(nostack, preserves_flags)) };
    pointer
}

/// Loads the IDT register.
///
/// # Safety
/// Runs at CPL 0; the table stays where it is for as long as it is in use.
pub unsafe fn lidt(pointer: &TablePointer) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lidt [{}]", in(reg) pointer, options(readonly, nostack, preserves_flags)) };
}

/// Access rights of a selector's descriptor in the form that LAR gives (bits
/// 8-23 of the descriptor's second double word), or `None` for an invalid one.
#[must_use]
pub fn lar(selector: u16) -> Option<u32> {
    let rights: u64;
    let valid: u8;
    // SAFETY: LAR reads a descriptor and reports an unusable selector in ZF.
    unsafe {
        asm!("lar {0:r}, {1:r}", "setz {2}", out(reg) rights, in(reg) u64::from(selector),
            out(reg_byte) valid, options(readonly, nostack));
    };
    #[expect(clippy::cast_possible_truncation, reason = "LAR gives 32 bits")]
    (valid != 0).then_some(rights as u32)
}

/// Segment limit in bytes of a selector's descriptor, or `None`.
#[must_use]
pub fn lsl(selector: u16) -> Option<u32> {
    let limit: u64;
    let valid: u8;
    // SAFETY: LSL reads a descriptor and reports an unusable selector in ZF.
    unsafe {
        asm!("lsl {0:r}, {1:r}", "setz {2}", out(reg) limit, in(reg) u64::from(selector),
            out(reg_byte) valid, options(readonly, nostack));
    };
    #[expect(clippy::cast_possible_truncation, reason = "LSL gives 32 bits")]
    (valid != 0).then_some(limit as u32)
}

/// The quadword at GS:0.
///
/// # Safety
/// The GS base points to readable memory.
#[inline]
#[must_use]
pub unsafe fn gs_self() -> u64 {
    let value: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) value, options(nostack, preserves_flags, readonly, pure));
    };
    value
}

/// The quadword at GS:16.
///
/// # Safety
/// The GS base points to readable memory.
#[inline]
#[must_use]
pub unsafe fn gs_counters() -> u64 {
    let value: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mov {}, gs:[16]", out(reg) value, options(nostack, preserves_flags, readonly, pure));
    };
    value
}

/// RFLAGS.
#[inline]
#[must_use]
pub fn rflags() -> u64 {
    let value: u64;
    // SAFETY: pushes and pops eight bytes.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(nomem, preserves_flags)) };
    value
}

/// Time-stamp counter.
#[inline]
#[must_use]
pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter; CR4.TSD does not matter at CPL 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Masks maskable interrupts.
///
/// # Safety
/// Runs at CPL 0; the caller sets IF again.
#[inline]
pub unsafe fn cli() {
    // SAFETY: the caller's promise.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Allows maskable interrupts.
///
/// # Safety
/// Runs at CPL 0 where interrupts may be taken.
#[inline]
pub unsafe fn sti() {
    // SAFETY: the caller's promise.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// Ends the blocking of NMIs that an NMI's exit or delivery begins, by an IRET to
/// the next instruction (Intel SDM vol. 3, "Handling Multiple NMIs").
///
/// # Safety
/// Runs at CPL 0 in 64-bit mode where an NMI may be taken: not on the NMI
/// handler's own stack.
#[inline]
pub unsafe fn unblock_nmis() {
    // SAFETY: the frame returns to the next instruction with the stack, segments
    // and flags of now.
    unsafe {
        asm!("mov {1}, rsp", "mov {0:e}, ss", "push {0}", "push {1}", "pushfq",
            "mov {0:e}, cs", "push {0}", "lea {0}, [rip + 2f]", "push {0}", "iretq", "2:",
            out(reg) _, out(reg) _, options(preserves_flags));
    };
}

/// Clears AMD's global interrupt flag: NMIs, SMIs and INIT wait.
///
/// # Safety
/// EFER.SVME is set; it is set again soon.
pub unsafe fn clgi() {
    // SAFETY: the caller's promise.
    unsafe { asm!("clgi", options(nomem, nostack)) };
}

/// Invalidates the translation of one linear address on this core.
///
/// # Safety
/// Runs at CPL 0.
#[inline]
pub unsafe fn invlpg(address: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Writes back and invalidates the caches.
///
/// # Safety
/// Runs at CPL 0.
pub unsafe fn wbinvd() {
    // SAFETY: the caller's promise.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// Reads an MSR that is known to exist.
///
/// # Safety
/// Runs at CPL 0; the MSR exists (else #GP; see [`try_rdmsr`]).
#[inline]
#[must_use]
pub unsafe fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR that is known to take the value.
///
/// # Safety
/// Runs at CPL 0; the MSR exists and takes the value (else #GP; see [`try_wrmsr`]).
#[inline]
pub unsafe fn wrmsr(index: u32, value: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high,
            options(nostack, preserves_flags));
    };
}

// The faultable instructions. Each pair (address of the instruction, address
// where to go on) stands in the table below; the host's exception handler looks
// the faulting address up there (`host::exceptions`).
//
// Microsoft x64 calling convention on every target.
global_asm!(
    ".globl hvdetect_try_rdmsr",
    ".balign 16",
    "hvdetect_try_rdmsr:", // rcx = index, rdx = *mut u64
    "    mov r8, rdx",
    "hvdetect_rdmsr_may_fault:",
    "    rdmsr",
    "    shl rdx, 32",
    "    or rax, rdx",
    "    mov [r8], rax",
    "    mov eax, 1",
    "    ret",
    ".globl hvdetect_try_wrmsr",
    ".balign 16",
    "hvdetect_try_wrmsr:", // rcx = index, rdx = value
    "    mov eax, edx",
    "    shr rdx, 32",
    "hvdetect_wrmsr_may_fault:",
    "    wrmsr",
    "    mov eax, 1",
    "    ret",
    ".globl hvdetect_try_xsetbv",
    ".balign 16",
    "hvdetect_try_xsetbv:", // rcx = index, rdx = value
    "    mov eax, edx",
    "    shr rdx, 32",
    "hvdetect_xsetbv_may_fault:",
    "    xsetbv",
    "    mov eax, 1",
    "    ret",
    "hvdetect_faulted:",
    "    xor eax, eax",
    "    ret",
    ".globl hvdetect_probe_rdmsr",
    ".balign 16",
    "hvdetect_probe_rdmsr:", // rcx = index, rdx = *mut u64, r8 = IDTR meanwhile, r9 = IDTR after
    "    lidt [r8]",
    "    mov r10, rdx",
    "    rdmsr",
    "    lidt [r9]",
    "    shl rdx, 32",
    "    or rax, rdx",
    "    mov [r10], rax",
    "    mov eax, 1",
    "    ret",
    "hvdetect_probe_landing:",
    "    lidt [r9]",
    "    xor eax, eax",
    "    ret",
    ".balign 16",
    "hvdetect_probe_handler:", // #GP: error code, RIP, CS, RFLAGS, RSP, SS
    "    add rsp, 8",
    "    lea rax, [rip + hvdetect_probe_landing]",
    "    mov [rsp], rax",
    "    iretq",
    ".globl hvdetect_probe_handler_address",
    ".balign 16",
    "hvdetect_probe_handler_address:",
    "    lea rax, [rip + hvdetect_probe_handler]",
    "    ret",
    ".globl hvdetect_fault_site",
    ".balign 16",
    "hvdetect_fault_site:", // rcx = number -> rax = address that may fault, 0 past the end
    "    lea rax, [rip + hvdetect_rdmsr_may_fault]",
    "    test ecx, ecx",
    "    jz 2f",
    "    lea rax, [rip + hvdetect_wrmsr_may_fault]",
    "    dec ecx",
    "    jz 2f",
    "    lea rax, [rip + hvdetect_xsetbv_may_fault]",
    "    dec ecx",
    "    jz 2f",
    "    xor eax, eax",
    "2:  ret",
    ".globl hvdetect_fault_landing",
    ".balign 16",
    "hvdetect_fault_landing:",
    "    lea rax, [rip + hvdetect_faulted]",
    "    ret",
);

unsafe extern "win64" {
    fn hvdetect_try_rdmsr(index: u32, value: *mut u64) -> u32;
    fn hvdetect_try_wrmsr(index: u32, value: u64) -> u32;
    fn hvdetect_try_xsetbv(index: u32, value: u64) -> u32;
    fn hvdetect_probe_rdmsr(
        index: u32,
        value: *mut u64,
        meanwhile: *const TablePointer,
        after: *const TablePointer,
    ) -> u32;
    fn hvdetect_probe_handler_address() -> u64;
    fn hvdetect_fault_site(number: u32) -> u64;
    fn hvdetect_fault_landing() -> u64;
}

/// Reads an MSR; `None` when the processor raises #GP.
///
/// # Safety
/// Root mode with the host's IDT loaded.
#[must_use]
pub unsafe fn try_rdmsr(index: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the fault is caught by the host's exception table.
    let done = unsafe { hvdetect_try_rdmsr(index, &raw mut value) };
    (done != 0).then_some(value)
}

/// Reads an MSR in guest context, where no handler of ours catches a fault;
/// `None` when the processor raises #GP. For the one instruction the processor uses
/// a copy of the IDT's exceptions whose #GP is ours; an NMI is taken as ever.
///
/// # Safety
/// CPL 0, maskable interrupts are off, kernel shadow stacks too.
#[must_use]
pub unsafe fn probe_rdmsr(index: u32) -> Option<u64> {
    const EXCEPTIONS: usize = 32;
    const LIMIT: u16 = 16 * 32 - 1;
    const GENERAL_PROTECTION: usize = 13;
    let after = sidt();
    let mut table = [[0_u64; 2]; EXCEPTIONS];
    for (number, gate) in table.iter_mut().enumerate() {
        let address = after.base + number as u64 * 16;
        // SAFETY: the loaded IDT has gates for all exceptions.
        let low = unsafe { load64(address) };
        // SAFETY: as above.
        let high = unsafe { load64(address + 8) };
        *gate = [low, high];
    }
    // SAFETY: computes an address.
    let handler = unsafe { hvdetect_probe_handler_address() };
    table[GENERAL_PROTECTION] = gate(handler, cs(), 0);
    let meanwhile = TablePointer {
        limit: LIMIT,
        base: &raw const table as u64,
    };
    let mut value = 0;
    // SAFETY: the caller's promise; a #GP goes to the function's own landing.
    let done = unsafe {
        hvdetect_probe_rdmsr(
            index,
            &raw mut value,
            &raw const meanwhile,
            &raw const after,
        )
    };
    (done != 0).then_some(value)
}

/// Writes an MSR; `false` when the processor raises #GP.
///
/// # Safety
/// Root mode with the host's IDT loaded; the guest may write this MSR.
#[must_use]
pub unsafe fn try_wrmsr(index: u32, value: u64) -> bool {
    // SAFETY: the fault is caught by the host's exception table.
    unsafe { hvdetect_try_wrmsr(index, value) != 0 }
}

/// Writes an extended control register; `false` when the processor raises #GP.
///
/// # Safety
/// Root mode with the host's IDT loaded and CR4.OSXSAVE set.
#[must_use]
pub unsafe fn try_xsetbv(index: u32, value: u64) -> bool {
    // SAFETY: the fault is caught by the host's exception table.
    unsafe { hvdetect_try_xsetbv(index, value) != 0 }
}

/// Where to go on after a fault at `rip`, or `None` when the instruction there
/// was not expected to fault.
#[must_use]
pub fn fixup(rip: u64) -> Option<u64> {
    let mut number = 0;
    loop {
        // SAFETY: computes an address from a small number.
        let site = unsafe { hvdetect_fault_site(number) };
        if site == 0 {
            return None;
        }
        if site == rip {
            // SAFETY: computes an address.
            return Some(unsafe { hvdetect_fault_landing() });
        }
        number += 1;
    }
}

macro_rules! vmx_on_address {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`VmFail`] as the processor reports it.
        ///
        /// # Safety
        /// CPL 0 with CR4.VMXE set; the address is that of a VMX region of ours.
        pub unsafe fn $name(physical: u64) -> Result<(), VmFail> {
            let (invalid, valid): (u8, u8);
            // SAFETY: the caller's promise; flags are read in the same block.
            unsafe {
                asm!(concat!($text, " qword ptr [{}]"), "setc {}", "setz {}",
                    in(reg) &raw const physical, lateout(reg_byte) invalid, lateout(reg_byte) valid,
                    options(nostack));
            };
            outcome(invalid, valid)
        }
    };
}

vmx_on_address!(/// VMXON: enters VMX operation.
    vmxon, "vmxon");
vmx_on_address!(/// VMCLEAR: writes a VMCS back and makes it inactive.
    vmclear, "vmclear");
vmx_on_address!(/// VMPTRLD: makes a VMCS current.
    vmptrld, "vmptrld");

/// VMXOFF: leaves VMX operation.
///
/// # Errors
/// [`VmFail`] as the processor reports it.
///
/// # Safety
/// VMX root operation; nothing of VMX is needed after it.
pub unsafe fn vmxoff() -> Result<(), VmFail> {
    let (invalid, valid): (u8, u8);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("vmxoff", "setc {}", "setz {}", lateout(reg_byte) invalid, lateout(reg_byte) valid,
            options(nostack));
    };
    outcome(invalid, valid)
}

/// Reads a field of the current VMCS; without meaning when there is no such field.
///
/// # Safety
/// VMX root operation with a current VMCS.
#[inline]
#[must_use]
pub unsafe fn vmread(field: u32) -> u64 {
    let value: u64;
    // SAFETY: the caller's promise; a failing VMREAD leaves the register alone.
    unsafe {
        asm!("vmread {}, {}", lateout(reg) value, in(reg) u64::from(field),
            options(nomem, nostack));
    };
    value
}

/// Writes a field of the current VMCS; a field that the processor does not have
/// is left alone.
///
/// # Safety
/// VMX root operation with a current VMCS; the value is legal for the next entry.
#[inline]
pub unsafe fn vmwrite(field: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nostack));
    };
}

/// INVEPT, single-context (type 1): drops every translation derived from an EPTP.
///
/// # Safety
/// VMX root operation on a processor with INVEPT.
#[inline]
pub unsafe fn invept_single(eptp: u64) {
    let descriptor = [eptp, 0];
    // SAFETY: the caller's promise.
    unsafe {
        asm!("invept {}, [{}]", in(reg) 1_u64, in(reg) &raw const descriptor,
            options(readonly, nostack));
    };
}

/// INVVPID, single-context (type 1): drops the linear translations of a VPID.
///
/// # Safety
/// VMX root operation on a processor with INVVPID.
pub unsafe fn invvpid_single(vpid: u16) {
    let descriptor = [u64::from(vpid), 0];
    // SAFETY: the caller's promise.
    unsafe {
        asm!("invvpid {}, [{}]", in(reg) 1_u64, in(reg) &raw const descriptor,
            options(readonly, nostack));
    };
}

macro_rules! hypercall {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Guest context at CPL 0 on a core that the hypervisor has taken over (else #UD).
        #[must_use]
        pub unsafe fn $name(secret: [u64; 2], operation: u64, first: u64, second: u64) -> u64 {
            let answer: u64;
            // SAFETY: the caller's promise. The hypervisor changes RAX only, except that
            // leaving may clobber what a call may clobber.
            unsafe {
                asm!($text, inout("rax") secret[0] => answer, inout("rdx") secret[1] => _,
                    inout("rcx") operation => _, inout("r8") first => _, inout("r9") second => _,
                    out("r10") _, out("r11") _);
            };
            answer
        }
    };
}

hypercall!(/// VMCALL to the hypervisor with the load's secret; the answer is in RAX.
    vmcall, "vmcall");
hypercall!(/// VMMCALL to the hypervisor with the load's secret; the answer is in RAX.
    vmmcall, "vmmcall");

/// Writes a byte to a port.
///
/// # Safety
/// CPL 0; what the device does is wanted.
#[cfg(feature = "trace")]
pub(crate) unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Shuts the processor down as a triple fault does.
///
/// # Safety
/// The machine is past saving, or the guest asked for it.
pub unsafe fn triple_fault() -> ! {
    let none = TablePointer::default();
    // SAFETY: the caller wants the shutdown; an IDT of limit 0 makes every fault one.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const none, options(noreturn)) };
}

fn outcome(invalid: u8, valid: u8) -> Result<(), VmFail> {
    if invalid != 0 {
        Err(VmFail::Invalid)
    } else if valid != 0 {
        // SAFETY: VMfailValid means that there is a current VMCS.
        let number = unsafe { vmread(0x4400) };
        #[expect(clippy::cast_possible_truncation, reason = "a 32-bit field")]
        Err(VmFail::Valid(number as u32))
    } else {
        Ok(())
    }
}
