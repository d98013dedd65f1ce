//! The boot ROM of the lab's machine: from the reset vector at 0xFFFFFFF0 through
//! protected mode into long mode, with the page tables that the boot image brings,
//! to the kernel's entry point. It runs on the bootstrap processor alone.
//!
//! The source is assembled by the compiler into this library's read-only data;
//! [`image`] gives the bytes, so no assembler and no binary file is needed. The
//! host never executes them.
//!
//! Contract with the image at physical 1 MiB (`bootimg`, module `layout`): magic at
//! offset 0, CR3 at 8, entry at 16, stack top at 24, boot block address (RCX) at 32.
//! A missing image ends the machine with exit code 0xE0 on the lab's port 0xE5.

use core::arch::global_asm;

/// Bytes of the ROM; it ends at the end of the first 4 GiB.
pub const LENGTH: usize = 0x1_0000;
/// Physical address of the ROM's first byte.
pub const BASE: u64 = 0xFFFF_0000;

// Intel SDM volume 3, 11.1.4 "First Instruction Executed" and 11.8.5
// "Initializing IA-32e Mode".
global_asm!(
    ".pushsection .rodata.lab_rom, \"a\", @progbits",
    ".balign 16",
    ".globl lab_rom_start",
    "lab_rom_start:",
    // 32-bit code: flat segments, paging off.
    ".code32",
    "lab_rom_start32:",
    "mov ax, 0x10",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "xor eax, eax",
    "mov fs, ax",
    "mov gs, ax",
    "mov esi, 0x100000",
    "cmp dword ptr [esi], 0x494E494D",
    "jne 9f",
    "cmp dword ptr [esi + 4], 0x5442544E",
    "jne 9f",
    // Bochs 2.7 gives memory in blocks of 128 KiB as they are first touched, and loads
    // the image through a pointer to its first block: touched in order, the others
    // come to lie where the image is.
    "mov edi, esi",
    "2:",
    "mov al, byte ptr [edi]",
    "add edi, 0x20000",
    "cmp edi, dword ptr [esi + 88]", // the image's end
    "jb 2b",
    // Caches on (CD and NW are set at reset), PAE and SSE (compiled code uses it), the image's tables.
    "mov eax, cr0",
    "and eax, 0x9FFFFFFF",
    "mov cr0, eax",
    "mov eax, 0x620",
    "mov cr4, eax",
    "mov eax, dword ptr [esi + 8]",
    "mov cr3, eax",
    "mov ecx, 0xC0000080",
    "rdmsr",
    "or eax, 0x900", // LME, NXE
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80010003", // PG, WP, MP, PE
    "mov cr0, eax",
    ".byte 0xEA", // jmp far 0x18:lab_rom_start64
    ".long 0xFFFF0000 + (lab_rom_start64 - lab_rom_start)",
    ".short 0x18",
    "9:",
    "mov al, 0xE0",
    "out 0xE5, al",
    "mov dx, 0xF4",
    "out dx, al",
    "mov dx, 0x8900",
    "mov al, 'S'",
    "out dx, al",
    "mov al, 'h'",
    "out dx, al",
    "mov al, 'u'",
    "out dx, al",
    "mov al, 't'",
    "out dx, al",
    "mov al, 'd'",
    "out dx, al",
    "mov al, 'o'",
    "out dx, al",
    "mov al, 'w'",
    "out dx, al",
    "mov al, 'n'",
    "out dx, al",
    "8:",
    "cli",
    "hlt",
    "jmp 8b",
    ".code64",
    "lab_rom_start64:",
    "xor eax, eax",
    "mov ss, ax",
    "mov ds, ax",
    "mov es, ax",
    "mov esi, 0x100000",
    "mov rcx, qword ptr [rsi + 32]",
    "mov rsp, qword ptr [rsi + 24]",
    "mov rax, qword ptr [rsi + 16]",
    "sub rsp, 0x28", // home area of the callee and the place of a return address
    "xor ebp, ebp",
    "jmp rax",
    // GDT: null, 32-bit code 0x08, data 0x10, 64-bit code 0x18.
    ".balign 8",
    "lab_rom_gdt:",
    ".quad 0",
    ".quad 0x00CF9B000000FFFF",
    ".quad 0x00CF93000000FFFF",
    ".quad 0x00AF9B000000FFFF",
    "lab_rom_gdtr:",
    ".short 31",
    ".long 0xFFFF0000 + (lab_rom_gdt - lab_rom_start)",
    // 16-bit code: the segment's base is 0xFFFF0000 until the far jump.
    ".org lab_rom_start + 0xFF80, 0xFF",
    "lab_rom_start16:",
    ".byte 0xFA",                         // cli
    ".byte 0x66, 0x2E, 0x0F, 0x01, 0x16", // lgdt cs:[lab_rom_gdtr], 32-bit base
    ".short lab_rom_gdtr - lab_rom_start",
    ".byte 0x0F, 0x20, 0xC0", // mov eax, cr0
    ".byte 0x0C, 0x01",       // or al, 1
    ".byte 0x0F, 0x22, 0xC0", // mov cr0, eax
    ".byte 0x66, 0xEA",       // jmp far 0x08:lab_rom_start32
    ".long 0xFFFF0000 + (lab_rom_start32 - lab_rom_start)",
    ".short 0x08",
    // Reset vector.
    ".org lab_rom_start + 0xFFF0, 0xFF",
    ".byte 0xE9",
    ".short lab_rom_start16 - lab_rom_start - 0xFFF3",
    ".org lab_rom_start + 0x10000, 0xFF",
    ".popsection",
);

unsafe extern "C" {
    static lab_rom_start: [u8; LENGTH];
}

/// The ROM's bytes.
#[must_use]
pub fn image() -> &'static [u8; LENGTH] {
    // SAFETY: the assembly above lays down exactly `LENGTH` bytes of read-only data.
    unsafe { &lab_rom_start }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(at: usize) -> usize {
        usize::from(u16::from_le_bytes([image()[at], image()[at + 1]]))
    }

    fn long(at: usize) -> u64 {
        let bytes = image()[at..at + 4].try_into().expect("four bytes");
        u64::from(u32::from_le_bytes(bytes))
    }

    /// Follows the processor from the reset vector to the 32-bit code, by the bytes.
    #[test]
    fn the_reset_vector_leads_to_the_flat_code() {
        let rom = image();
        assert_eq!(rom[0xFFF0], 0xE9);
        let start16 = (0xFFF3 + word(0xFFF1)) & 0xFFFF;
        assert_eq!(rom[start16], 0xFA);
        assert_eq!(
            rom[start16 + 1..start16 + 6],
            [0x66, 0x2E, 0x0F, 0x01, 0x16]
        );
        let gdtr = word(start16 + 6);
        let gdt = usize::try_from(long(gdtr + 2) - BASE).expect("inside the ROM");
        assert_eq!(word(gdtr), 31, "four descriptors");
        assert_eq!(rom[gdt..gdt + 8], [0; 8]);
        assert_eq!(rom[gdt + 8 + 5], 0x9B, "code, present, ring 0");
        assert_eq!(
            rom[gdt + 24 + 6] & 0x60,
            0x20,
            "the last one is 64-bit code"
        );
        let jump = start16 + 16;
        assert_eq!(rom[jump..jump + 2], [0x66, 0xEA]);
        assert_eq!(long(jump + 2), BASE, "the 32-bit code stands first");
        assert_eq!(word(jump + 6), 8);
    }
}
