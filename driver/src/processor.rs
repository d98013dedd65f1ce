//! What CPUID tells about this processor while the hypervisor is off.
//!
//! Pure reads; any IRQL. Intel SDM vol. 2, "CPUID"; AMD APM vol. 3, the same.

use core::arch::x86_64::__cpuid;

use detector::wire::Vendor;

/// Whose processor this is.
pub(crate) fn vendor() -> Vendor {
    let leaf = __cpuid(0);
    let mut name = [0; 12];
    let registers = [leaf.ebx, leaf.edx, leaf.ecx];
    for (bytes, register) in name.chunks_exact_mut(4).zip(registers) {
        bytes.copy_from_slice(&register.to_le_bytes());
    }
    match &name {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" => Vendor::Amd,
        _ => Vendor::Unknown,
    }
}

/// Width of physical addresses, bits.
pub(crate) fn address_bits() -> u32 {
    const SIZES: u32 = 0x8000_0008;
    if __cpuid(0x8000_0000).eax < SIZES {
        return 36;
    }
    __cpuid(SIZES).eax & 0xFF
}
