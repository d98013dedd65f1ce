//! The boot block that `bootimg` lays before the image, and what it tells: where
//! the kernel lies, the command line, the files of the RAM disk.
//!
//! Read-only after [`initialize`]; any IRQL. Layout: `tests/bootimg`, module
//! `layout`; both sides check the magic and the version.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// First eight bytes of the image, "MININTBT".
const MAGIC: u64 = u64::from_le_bytes(*b"MININTBT");
/// Version of the layout.
const VERSION: u32 = 1;

/// The block at the start of the boot image (physical 1 MiB). Fields up to
/// `block` are the ROM's, at fixed offsets.
#[repr(C)]
#[derive(Debug)]
pub struct BootBlock {
    magic: u64,
    /// Physical address of the first PML4.
    pub cr3: u64,
    entry: u64,
    stack_top: u64,
    block: u64,
    version: u32,
    file_count: u32,
    /// Virtual address of the kernel image.
    pub kernel_base: u64,
    /// Bytes of the kernel image in memory, headers included.
    pub kernel_size: u64,
    /// Physical address of the kernel image.
    pub kernel_physical: u64,
    /// Where physical address 0 appears; the first GiB is mapped there.
    pub direct_map: u64,
    /// Physical start of the boot image.
    pub image_start: u64,
    /// Physical end of the boot image.
    pub image_end: u64,
    command_line: u64,
    command_line_length: u64,
    files: u64,
}

/// One row of the file table; addresses are physical.
#[repr(C)]
struct FileRow {
    name: u64,
    name_length: u64,
    bytes: u64,
    length: u64,
}

/// A file of the RAM disk.
#[derive(Clone, Copy, Debug)]
pub struct BootFile {
    /// Its name, as given to `bootimg`.
    pub name: &'static str,
    /// Its content.
    pub bytes: &'static [u8],
}

static BLOCK: AtomicPtr<BootBlock> = AtomicPtr::new(core::ptr::null_mut());
static DIRECT_MAP: AtomicUsize = AtomicUsize::new(0);

/// Takes the block that the ROM handed over.
///
/// # Safety
/// `block` is the boot block of an image laid out by `bootimg`, mapped for good.
pub(crate) unsafe fn initialize(block: *mut BootBlock) {
    BLOCK.store(block, Ordering::Release);
    let this = self::block();
    assert!(
        this.magic == MAGIC && this.version == VERSION,
        "the boot block is of another version"
    );
    DIRECT_MAP.store(this.direct_map as usize, Ordering::Release);
}

/// The boot block.
pub fn block() -> &'static BootBlock {
    // SAFETY: set once by `initialize` to a block that stays mapped and unchanged.
    unsafe { &*BLOCK.load(Ordering::Acquire) }
}

fn text(physical: u64, length: u64) -> &'static str {
    core::str::from_utf8(bytes(physical, length)).unwrap_or("")
}

fn bytes(physical: u64, length: u64) -> &'static [u8] {
    let start = (DIRECT_MAP.load(Ordering::Acquire) + physical as usize) as *const u8;
    // SAFETY: `bootimg` put that many bytes there, inside the image, which is never freed or written.
    unsafe { core::slice::from_raw_parts(start, length as usize) }
}

/// The whole command line.
pub fn cmdline() -> &'static str {
    text(block().command_line, block().command_line_length)
}

/// The value of `key=value` on the command line, `""` for the bare word `key`.
pub fn option(key: &str) -> Option<&'static str> {
    cmdline().split_ascii_whitespace().find_map(|word| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        (name == key).then_some(value)
    })
}

/// A decimal or `0x` number on the command line.
pub fn option_number(key: &str) -> Option<u64> {
    let value = option(key)?;
    match value.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok(),
        None => value.parse().ok(),
    }
}

/// The files of the RAM disk, in order.
pub fn files() -> impl Iterator<Item = BootFile> {
    let block = block();
    (0..block.file_count as usize).map(move |index| {
        let table = (DIRECT_MAP.load(Ordering::Acquire) + block.files as usize) as *const FileRow;
        let at = table.wrapping_add(index);
        // SAFETY: `bootimg` wrote `file_count` rows there.
        let row = unsafe { &*at };
        BootFile {
            name: text(row.name, row.name_length),
            bytes: bytes(row.bytes, row.length),
        }
    })
}

/// The content of a file, by name without regard to ASCII case.
pub fn file(name: &str) -> Option<&'static [u8]> {
    files()
        .find(|file| file.name.eq_ignore_ascii_case(name))
        .map(|file| file.bytes)
}

/// Virtual address of `ntoskrnl.exe`.
pub fn kernel_base() -> usize {
    block().kernel_base as usize
}

/// Bytes of `ntoskrnl.exe` in memory, headers included.
pub fn kernel_size() -> usize {
    block().kernel_size as usize
}
