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

/// Loads XMM0 to XMM15 and MXCSR from `before`, executes CPUID (leaf 1) and RDMSR of
/// EFER `rounds` times, of which one at least exits below a hypervisor, and stores
/// them to `after`.
///
/// # Safety
/// `before` holds 16 registers and an MXCSR without reserved bits; `rounds` is
/// not 0.
pub unsafe fn vectors_over_exits(before: &[u128; 17], after: &mut [u128; 17], rounds: u64) {
    // SAFETY: both arrays are that large; all that changes is named. RBX is kept
    // by hand: the compiler reserves it.
    unsafe {
        asm!(
            "sub rsp, 16",
            "stmxcsr [rsp]",
            "mov r8, rbx",
            "movups xmm0, [rsi]",
            "movups xmm1, [rsi + 0x10]",
            "movups xmm2, [rsi + 0x20]",
            "movups xmm3, [rsi + 0x30]",
            "movups xmm4, [rsi + 0x40]",
            "movups xmm5, [rsi + 0x50]",
            "movups xmm6, [rsi + 0x60]",
            "movups xmm7, [rsi + 0x70]",
            "movups xmm8, [rsi + 0x80]",
            "movups xmm9, [rsi + 0x90]",
            "movups xmm10, [rsi + 0xA0]",
            "movups xmm11, [rsi + 0xB0]",
            "movups xmm12, [rsi + 0xC0]",
            "movups xmm13, [rsi + 0xD0]",
            "movups xmm14, [rsi + 0xE0]",
            "movups xmm15, [rsi + 0xF0]",
            "ldmxcsr [rsi + 0x100]",
            "2:",
            "mov eax, 1",
            "xor ecx, ecx",
            "cpuid",
            "mov ecx, 0xC0000080",
            "rdmsr",
            "dec r9",
            "jnz 2b",
            "movups [rdi], xmm0",
            "movups [rdi + 0x10], xmm1",
            "movups [rdi + 0x20], xmm2",
            "movups [rdi + 0x30], xmm3",
            "movups [rdi + 0x40], xmm4",
            "movups [rdi + 0x50], xmm5",
            "movups [rdi + 0x60], xmm6",
            "movups [rdi + 0x70], xmm7",
            "movups [rdi + 0x80], xmm8",
            "movups [rdi + 0x90], xmm9",
            "movups [rdi + 0xA0], xmm10",
            "movups [rdi + 0xB0], xmm11",
            "movups [rdi + 0xC0], xmm12",
            "movups [rdi + 0xD0], xmm13",
            "movups [rdi + 0xE0], xmm14",
            "movups [rdi + 0xF0], xmm15",
            "stmxcsr [rdi + 0x100]",
            "mov rbx, r8",
            "ldmxcsr [rsp]",
            "add rsp, 16",
            in("rsi") before.as_ptr(),
            in("rdi") after.as_mut_ptr(),
            inout("r9") rounds => _,
            out("rax") _, out("rcx") _, out("rdx") _, out("r8") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
    }
}

/// `IN AL`: the port's side effect is intended.
///
/// # Safety
/// Reading the port must not disturb a device that others drive.
pub unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    };
    value
}

/// `OUT AL`.
///
/// # Safety
/// The device behind the port must accept the value now.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    };
}

/// `IN EAX`.
///
/// # Safety
/// As [`inb`].
pub unsafe fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags));
    };
    value
}

/// `OUT EAX`.
///
/// # Safety
/// As [`outb`].
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags));
    };
}

/// `OUT AX`.
///
/// # Safety
/// As [`outb`].
pub unsafe fn outw(port: u16, value: u16) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags));
    };
}

/// `IN AX`.
///
/// # Safety
/// As [`inb`].
pub unsafe fn inw(port: u16) -> u16 {
    let value;
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags));
    };
    value
}

/// `RDMSR`.
///
/// # Safety
/// The register exists on this processor.
pub unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    };
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

/// 32 bits at `GS:OFFSET`, the KPCR of this processor.
pub fn gs_u32<const OFFSET: usize>() -> u32 {
    let value;
    // SAFETY: GS points to the KPCR from the first instructions of each processor on.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) value, const OFFSET, options(nostack, preserves_flags, readonly));
    };
    value
}

/// 64 bits at `GS:OFFSET`, the KPCR of this processor.
pub fn gs_u64<const OFFSET: usize>() -> u64 {
    let value;
    // SAFETY: as for `gs_u32`.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) value, const OFFSET, options(nostack, preserves_flags, readonly));
    };
    value
}

#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u64,
}

/// `LGDT`.
///
/// # Safety
/// The table holds every selector in use and stays where it is.
pub unsafe fn lgdt(base: u64, limit: u16) {
    let register = TableRegister { limit, base };
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("lgdt [{}]", in(reg) &raw const register, options(nostack, preserves_flags, readonly));
    };
}

/// `LIDT`.
///
/// # Safety
/// Every gate leads to an entry stub, and the table stays where it is.
pub unsafe fn lidt(base: u64, limit: u16) {
    let register = TableRegister { limit, base };
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const register, options(nostack, preserves_flags, readonly));
    };
}

/// `LTR`.
///
/// # Safety
/// The selector names an available TSS that stays where it is.
pub unsafe fn ltr(selector: u16) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("ltr {:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// Loads CS, SS, DS = ES = GS and FS. Bases of FS and GS become those of the descriptors.
///
/// # Safety
/// The loaded GDT has these selectors: 64-bit ring-0 code and writable data.
pub unsafe fn load_segments(code: u16, stack: u16, data: u16, fs: u16) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!(
            "mov ss, {stack:x}",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            "mov gs, {data:x}",
            "mov fs, {fs:x}",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            stack = in(reg) stack,
            data = in(reg) data,
            fs = in(reg) fs,
            code = in(reg) u64::from(code),
            scratch = out(reg) _,
        );
    }
}

/// `XSETBV`.
///
/// # Safety
/// CR4.OSXSAVE is on and the processor offers the components.
pub unsafe fn xsetbv(register: u32, value: u64) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("xsetbv", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// `XSAVE64`, or `FXSAVE64` when `mask` is 0.
///
/// # Safety
/// `area` is aligned to 64 bytes and as long as the components need.
pub unsafe fn xsave(area: *mut u8, mask: u64) {
    if mask == 0 {
        // SAFETY: forwarded to the caller.
        unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
        return;
    }
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("xsave64 [{}]", in(reg) area, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// `XRSTOR64`, or `FXRSTOR64` when `mask` is 0.
///
/// # Safety
/// `area` holds what [`xsave`] wrote, and the caller owns the registers.
pub unsafe fn xrstor(area: *const u8, mask: u64) {
    if mask == 0 {
        // SAFETY: forwarded to the caller.
        unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
        return;
    }
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// `CLAC`/`STAC` where SMAP is on.
pub fn allow_user_access(allow: bool) {
    if read_cr4() >> 21 & 1 == 0 {
        return;
    }
    if allow {
        // SAFETY: the caller is about to touch ring-3 memory on purpose.
        unsafe { asm!("stac", options(nostack)) };
    } else {
        // SAFETY: restores the normal state.
        unsafe { asm!("clac", options(nostack)) };
    }
}

/// `INT3`.
pub fn breakpoint() {
    // SAFETY: vector 3 has a handler.
    unsafe { asm!("int3", options(nostack)) };
}

/// RSP, for stack dumps and limits.
pub fn stack_pointer() -> usize {
    let value;
    // SAFETY: reading a register.
    unsafe { asm!("mov {}, rsp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `SGDT`: base and limit.
pub fn sgdt() -> (u64, u16) {
    let mut image = [0u16; 5];
    // SAFETY: stores ten bytes into this array.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut image, options(nostack, preserves_flags)) };
    descriptor_table(image)
}

/// `SIDT`: base and limit.
pub fn sidt() -> (u64, u16) {
    let mut image = [0u16; 5];
    // SAFETY: stores ten bytes into this array.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut image, options(nostack, preserves_flags)) };
    descriptor_table(image)
}

fn descriptor_table(image: [u16; 5]) -> (u64, u16) {
    let [limit, a, b, c, d] = image.map(u64::from);
    (a | b << 16 | c << 32 | d << 48, limit as u16)
}

macro_rules! selector {
    ($read:ident, $instruction:literal) => {
        #[doc = concat!("`", $instruction, "`, a segment selector.")]
        pub fn $read() -> u16 {
            let value: u64;
            // SAFETY: reading a selector changes nothing.
            unsafe { asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value as u16
        }
    };
}

selector!(read_cs, "mov {}, cs");
selector!(read_ss, "mov {}, ss");
selector!(read_ds, "mov {}, ds");
selector!(read_es, "mov {}, es");
selector!(read_fs, "mov {}, fs");
selector!(read_gs, "mov {}, gs");
selector!(str, "str {}");
selector!(sldt, "sldt {}");

/// `LAR`: access rights of a selector, 0 if it has none.
pub fn lar(selector: u16) -> u32 {
    let (rights, valid): (u64, u8);
    // SAFETY: reads a descriptor and sets ZF.
    unsafe {
        asm!("lar {r}, {s}", "setz {z}", s = in(reg) u64::from(selector), r = inout(reg) 0u64 => rights, z = out(reg_byte) valid, options(nostack));
    }
    if valid == 0 { 0 } else { rights as u32 }
}

/// `LSL`: limit of a selector, 0 if it has none.
pub fn lsl(selector: u16) -> u32 {
    let (limit, valid): (u64, u8);
    // SAFETY: reads a descriptor and sets ZF.
    unsafe {
        asm!("lsl {r}, {s}", "setz {z}", s = in(reg) u64::from(selector), r = inout(reg) 0u64 => limit, z = out(reg_byte) valid, options(nostack));
    }
    if valid == 0 { 0 } else { limit as u32 }
}

/// `XGETBV` of XCR0.
///
/// # Safety
/// CR4.OSXSAVE is set.
pub unsafe fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    };
    u64::from(high) << 32 | u64::from(low)
}

macro_rules! debug_register {
    ($read:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading a debug register changes nothing (DR7.GD is never set).
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}

debug_register!(read_dr0, "dr0");
debug_register!(read_dr1, "dr1");
debug_register!(read_dr2, "dr2");
debug_register!(read_dr3, "dr3");
debug_register!(read_dr6, "dr6");

/// Puts a pattern into the non-volatile XMM registers, spins, and tells whether it is
/// still there: for the test of context switches.
#[cfg(feature = "core-only")]
pub fn xmm_pattern_survives(pattern: u64, turns: u64) -> bool {
    let left: u64;
    // SAFETY: changes only registers that it names.
    unsafe {
        asm!(
            "movq xmm6, {pattern}",
            "movq xmm15, {pattern}",
            "movq xmm0, {pattern}",
            "2:",
            "dec {turns}",
            "jnz 2b",
            "movq {turns}, xmm6",
            "xor {turns}, {pattern}",
            "movq {other}, xmm15",
            "xor {other}, {pattern}",
            "or {turns}, {other}",
            "movq {other}, xmm0",
            "xor {other}, {pattern}",
            "or {turns}, {other}",
            pattern = in(reg) pattern,
            turns = inout(reg) turns => left,
            other = out(reg) _,
            out("xmm0") _,
            out("xmm6") _,
            out("xmm15") _,
        );
    }
    left == 0
}

/// `RDMSR` of a register that may not exist: the value, or `None` after #GP.
pub fn rdmsr_probe(register: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: stores into `value`; the trap handler turns a fault into a result.
    let found = unsafe { KiProbeMsr(register, &raw mut value) };
    (found != 0).then_some(value)
}

/// Address of the instruction in [`rdmsr_probe`] that may fault.
pub(crate) fn probe_read() -> u64 {
    (KiProbeMsr as *const () as u64) + PROBE_READ
}

/// Where it goes on after the fault.
pub(crate) fn probe_fault() -> u64 {
    (KiProbeMsr as *const () as u64) + PROBE_FAULT
}

const PROBE_READ: u64 = 8;
const PROBE_FAULT: u64 = 32;

#[unsafe(naked)]
unsafe extern "C" fn KiProbeMsr(register: u32, value: *mut u64) -> u32 {
    core::arch::naked_asm!(
        "mov r8, rdx",
        ".balign 8",
        "rdmsr",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [r8], rax",
        "mov eax, 1",
        "ret",
        ".balign 32",
        "xor eax, eax",
        "ret",
    )
}
