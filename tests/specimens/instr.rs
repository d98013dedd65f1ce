//! The few instructions of the specimens that Rust has no word for.

#![allow(dead_code, reason = "each specimen uses what it needs")]

use core::arch::{asm, naked_asm};

/// Tells the lab's machine in which frame foreign code is about to run: two
/// writes to a port that no hardware has. Elsewhere nothing happens.
#[cfg(feature = "lab-port")]
pub(crate) fn tell_lab(frame: u64) {
    const PORT: u16 = 0xE7;
    let low = (frame & 0xFFFF_FFFF) as u32;
    let high = (frame >> 32) as u32;
    for half in [low, high] {
        // SAFETY: the port belongs to the lab or to nobody.
        unsafe {
            asm!("out dx, eax", in("dx") PORT, in("eax") half,
                options(nomem, nostack, preserves_flags));
        }
    }
}

/// CR3.
pub(crate) fn cr3() -> u64 {
    let value;
    // SAFETY: a driver may read it.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Calls `routine(argument)` with `root` in CR3 and interrupts off; the page at
/// `address`, which the two sets of tables map differently, leaves the TLB both
/// times, global or not.
///
/// # Safety
/// The tables at `root` map what the system's do, but for that page.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn call_with_root(
    root: u64,
    address: u64,
    routine: unsafe extern "C" fn(u64) -> u64,
    argument: u64,
) -> u64 {
    naked_asm!(
        "push rbx",
        "push rsi",
        "pushfq",
        "sub rsp, 32",
        "cli",
        "mov rbx, cr3",
        "mov rsi, rdx",
        "mov cr3, rcx",
        "invlpg [rdx]",
        "mov rcx, r9",
        "call r8",
        "mov cr3, rbx",
        "invlpg [rsi]",
        "add rsp, 32",
        "popfq",
        "pop rsi",
        "pop rbx",
        "ret",
    )
}

/// Orders the stores of this processor before its next fetch, as the manual asks
/// of code that writes code for another address (Intel SDM vol. 3, "Handling
/// Self- and Cross-Modifying Code").
pub(crate) fn serialize() {
    let _ = core::arch::x86_64::__cpuid(0);
}
