//! Addresses and the boot block: the contract between `rom`, this crate and
//! MiniNT (`tests/minint/src/hal/boot.rs`, which checks magic and version).

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Physical address at which the image is loaded.
pub const IMAGE_BASE: u64 = 0x10_0000;
/// Virtual address of `ntoskrnl.exe`.
pub const KERNEL_BASE: u64 = 0xFFFF_F805_4000_0000;
/// Virtual address at which physical address 0 appears.
pub const DIRECT_MAP: u64 = 0xFFFF_AA00_0000_0000;
/// Pages of the stack on which the bootstrap processor starts.
pub const STACK_PAGES: u64 = 8;
/// Bytes of a row of the file table: name, its length, content, its length.
pub const FILE_ROW: u64 = 32;
/// First eight bytes of the image.
pub const MAGIC: [u8; 8] = *b"MININTBT";
/// Version of the boot block.
pub const VERSION: u32 = 1;

/// The boot block, in the order in which it lies in memory, after the magic.
/// Addresses without "virtual" in their line are physical.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Root of the page tables.
    pub(crate) cr3: u64,
    /// Virtual address of `KiSystemStartup`.
    pub(crate) entry: u64,
    /// Virtual end of the first stack.
    pub(crate) stack_top: u64,
    /// Virtual address of this block.
    pub(crate) this: u64,
    /// Rows of the file table; the version stands before it.
    pub(crate) file_count: u32,
    /// Virtual address of the kernel image.
    pub(crate) kernel_base: u64,
    /// Its length in bytes.
    pub(crate) kernel_size: u64,
    /// Where it lies.
    pub(crate) kernel_physical: u64,
    /// Virtual address of physical 0.
    pub(crate) direct_map: u64,
    /// Start of the image.
    pub(crate) image_start: u64,
    /// End of the image.
    pub(crate) image_end: u64,
    /// Command line.
    pub(crate) command_line: u64,
    /// Its length in bytes.
    pub(crate) command_line_length: u64,
    /// File table.
    pub(crate) files: u64,
}

impl Block {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let version = u64::from(VERSION) | u64::from(self.file_count) << 32;
        let words = [
            u64::from_le_bytes(MAGIC),
            self.cr3,
            self.entry,
            self.stack_top,
            self.this,
            version,
            self.kernel_base,
            self.kernel_size,
            self.kernel_physical,
            self.direct_map,
            self.image_start,
            self.image_end,
            self.command_line,
            self.command_line_length,
            self.files,
        ];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}
