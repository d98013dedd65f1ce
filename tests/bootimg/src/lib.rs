//! Lays out the lab's boot image: MiniNT's PE, relocated and mapped with the
//! rights of its sections, the page tables that the ROM loads, the command line
//! and the files of the RAM disk.
//!
//! [`build`] is a pure function of its [`Spec`]. The image goes to physical
//! [`layout::IMAGE_BASE`] (`optramimage1` in Bochs, `-device loader` in QEMU), the
//! ROM to the end of the first 4 GiB.

mod kernel;
pub mod layout;
mod tables;

use anyhow::{Context, Result, ensure};
use kernel::Kernel;
use layout::{DIRECT_MAP, FILE_ROW, IMAGE_BASE, KERNEL_BASE, PAGE, STACK_PAGES};
use tables::{Rights, Tables};

/// What goes into a boot image.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// `ntoskrnl.exe`, the PE file.
    pub kernel: &'a [u8],
    /// Files of the RAM disk: name and content.
    pub files: Vec<(String, Vec<u8>)>,
    /// `key=value` words.
    pub cmdline: String,
}

/// What the emulator gets.
#[derive(Clone, Debug)]
pub struct Image {
    /// The ROM, for physical `rom::BASE`.
    pub rom: Vec<u8>,
    /// The image, for physical [`layout::IMAGE_BASE`].
    pub image: Vec<u8>,
}

/// Lays the image out.
///
/// # Errors
/// The kernel is no PE32+ image for x86-64 with page-aligned sections, a section is
/// writable and executable, it has no entry point, or the whole does not fit below
/// 1 GiB.
pub fn build(spec: &Spec<'_>) -> Result<Image> {
    let kernel = Kernel::lay_out(spec.kernel, KERNEL_BASE).context("kernel image")?;

    // Block, stack, then the kernel, then the tables, then text and files.
    let stack = IMAGE_BASE + PAGE;
    let kernel_physical = stack + STACK_PAGES * PAGE;
    let tables_physical = kernel_physical + kernel.bytes.len() as u64;
    let mut tables = Tables::new(tables_physical);
    for page in &kernel.pages {
        tables.map_page(
            KERNEL_BASE + page.offset,
            kernel_physical + page.offset,
            page.rights,
        );
    }
    // The first GiB at its direct-map place; the first 2 MiB by pages, without the
    // hole of video memory and ROM.
    for physical in (PAGE..0xA_0000).chain(0x10_0000..0x20_0000).step_by_page() {
        tables.map_page(DIRECT_MAP + physical, physical, Rights::ReadWrite);
    }
    for physical in (0x20_0000..0x4000_0000).step_by(0x20_0000) {
        tables.map_large(DIRECT_MAP + physical, physical, Rights::ReadWrite);
    }
    // Identity, for the ROM itself and for the real-mode start of the other processors.
    tables.map_large(0, 0, Rights::ReadWriteExecute);
    tables.map_large(0xFFE0_0000, 0xFFE0_0000, Rights::ReadExecute);

    let mut image = vec![0u8; usize::try_from(tables_physical - IMAGE_BASE)?];
    let at = usize::try_from(kernel_physical - IMAGE_BASE)?;
    image[at..at + kernel.bytes.len()].copy_from_slice(&kernel.bytes);
    image.extend_from_slice(&tables.bytes());

    let command_line = append(&mut image, spec.cmdline.as_bytes(), 16);
    let mut rows = Vec::new();
    for (name, bytes) in &spec.files {
        let name_at = append(&mut image, name.as_bytes(), 16);
        let bytes_at = append(&mut image, bytes, PAGE);
        rows.extend([name_at, name.len() as u64, bytes_at, bytes.len() as u64]);
    }
    let rows: Vec<u8> = rows
        .iter()
        .flat_map(|word: &u64| word.to_le_bytes())
        .collect();
    let files = append(&mut image, &rows, FILE_ROW);
    pad(&mut image, PAGE);
    let end = IMAGE_BASE + image.len() as u64;
    ensure!(
        end <= 0x4000_0000,
        "the boot image ends at {end:#x}, beyond the first GiB"
    );

    let block = layout::Block {
        cr3: tables.root(),
        entry: KERNEL_BASE + kernel.entry,
        stack_top: DIRECT_MAP + kernel_physical,
        this: DIRECT_MAP + IMAGE_BASE,
        file_count: u32::try_from(spec.files.len())?,
        kernel_base: KERNEL_BASE,
        kernel_size: kernel.bytes.len() as u64,
        kernel_physical,
        direct_map: DIRECT_MAP,
        image_start: IMAGE_BASE,
        image_end: end,
        command_line,
        command_line_length: spec.cmdline.len() as u64,
        files,
    }
    .to_bytes();
    image[..block.len()].copy_from_slice(&block);
    Ok(Image {
        rom: rom::image().to_vec(),
        image,
    })
}

/// Appends at the next multiple of `alignment`; returns the physical address.
fn append(image: &mut Vec<u8>, bytes: &[u8], alignment: u64) -> u64 {
    pad(image, alignment);
    let at = IMAGE_BASE + image.len() as u64;
    image.extend_from_slice(bytes);
    at
}

fn pad(image: &mut Vec<u8>, alignment: u64) {
    let alignment = usize::try_from(alignment).unwrap_or(1);
    image.resize(image.len().next_multiple_of(alignment), 0);
}

trait StepByPage: Iterator<Item = u64> + Sized {
    fn step_by_page(self) -> impl Iterator<Item = u64> {
        self.filter(|address| address % PAGE == 0)
    }
}

impl<I: Iterator<Item = u64>> StepByPage for I {}

#[cfg(test)]
mod tests;
