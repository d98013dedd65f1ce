//! One wrapper per instruction: all inline assembly of the kernel.
//!
//! Each wrapper is `unsafe` unless no operand can do harm at CPL 0; its line says
//! what the caller promises. Names are those of the Intel SDM, volume 2.

use core::arch::asm;

/// `CPUID` leaf and subleaf: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// `IN AL`: the port's side effect is intended.
///
/// # Safety
/// Reading the port must not disturb a device that others drive.
pub unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: forwarded to the caller.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `OUT AL`.
///
/// # Safety
/// The device behind the port must accept the value now.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// `IN EAX`.
///
/// # Safety
/// As [`inb`].
pub unsafe fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: forwarded to the caller.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `OUT EAX`.
///
/// # Safety
/// As [`outb`].
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// `OUT AX`.
///
/// # Safety
/// As [`outb`].
pub unsafe fn outw(port: u16, value: u16) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// `IN AX`.
///
/// # Safety
/// As [`inb`].
pub unsafe fn inw(port: u16) -> u16 {
    let value;
    // SAFETY: forwarded to the caller.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `RDMSR`.
///
/// # Safety
/// The register exists on this processor.
pub unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: forwarded to the caller.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// `WRMSR`.
///
/// # Safety
/// The register exists, takes the value, and the kernel can live with its effect.
pub unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading a control register changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Safety
        /// The kernel's code, stack and data stay reachable under the new value.
        pub unsafe fn $write(value: u64) {
            // SAFETY: forwarded to the caller.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

control_register!(read_cr0, write_cr0, "cr0");
control_register!(read_cr2, write_cr2, "cr2");
control_register!(read_cr3, write_cr3, "cr3");
control_register!(read_cr4, write_cr4, "cr4");
control_register!(read_cr8, write_cr8, "cr8");
control_register!(read_dr7, write_dr7, "dr7");

/// RFLAGS.
pub fn read_flags() -> u64 {
    let value;
    // SAFETY: reading the flags changes nothing.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(nomem, preserves_flags)) };
    value
}

/// `CLI`; returns whether interrupts were on.
pub fn cli() -> bool {
    let were_on = read_flags() & 0x200 != 0;
    // SAFETY: code that runs with interrupts off is delayed, not wrong.
    unsafe { asm!("cli", options(nostack)) };
    were_on
}

/// `STI`.
///
/// # Safety
/// The IDT and the current stack can take an interrupt now.
pub unsafe fn sti() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("sti", options(nostack)) };
}

/// `STI; HLT`: waits for the next interrupt without a gap in between.
///
/// # Safety
/// As [`sti`].
pub unsafe fn sti_hlt() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// `CLI; HLT` for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: the processor is out of use from here on.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// `PAUSE`.
pub fn pause() {
    core::hint::spin_loop();
}

/// `RDTSC`.
pub fn rdtsc() -> u64 {
    // SAFETY: CR4.TSD does not matter at CPL 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// `INVLPG`.
pub fn invlpg(address: usize) {
    // SAFETY: dropping a translation is always allowed; the next use walks again.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// `WBINVD`.
pub fn wbinvd() {
    // SAFETY: writes back and empties the caches; contents stay the same.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}
