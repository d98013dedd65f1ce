//! The kernel's PE file as it lies in memory: sections at their places, base
//! relocations applied, and the rights of each page.

use anyhow::{Context, Result, bail, ensure};
use object::LittleEndian as LE;
use object::pe::{
    IMAGE_FILE_MACHINE_AMD64, IMAGE_REL_BASED_ABSOLUTE, IMAGE_REL_BASED_DIR64,
    IMAGE_SCN_MEM_EXECUTE, IMAGE_SCN_MEM_WRITE,
};
use object::read::pe::{ImageOptionalHeader, PeFile64};

use crate::layout::PAGE;
use crate::tables::Rights;

/// Rights of one page of the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) offset: u64,
    pub(crate) rights: Rights,
}

/// The image in memory.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) bytes: Vec<u8>,
    pub(crate) pages: Vec<Page>,
    /// Offset of the entry point.
    pub(crate) entry: u64,
}

impl Kernel {
    pub(crate) fn lay_out(file: &[u8], base: u64) -> Result<Self> {
        let pe = PeFile64::parse(file).context("not a PE32+ file")?;
        let headers = pe.nt_headers();
        ensure!(
            headers.file_header.machine.get(LE) == IMAGE_FILE_MACHINE_AMD64,
            "not an image for x86-64"
        );
        let optional = &headers.optional_header;
        ensure!(
            u64::from(optional.section_alignment()) == PAGE,
            "sections are not aligned to {PAGE} bytes"
        );
        let entry = u64::from(optional.address_of_entry_point());
        ensure!(entry != 0, "no entry point");
        let size =
            usize::try_from(optional.size_of_image())?.next_multiple_of(usize::try_from(PAGE)?);
        let headers_size = usize::try_from(optional.size_of_headers())?;

        let mut bytes = vec![0u8; size];
        place(
            &mut bytes,
            0,
            file.get(..headers_size).context("headers are cut short")?,
        )?;
        let mut pages = vec![Page {
            offset: 0,
            rights: Rights::Read,
        }];
        for section in pe.section_table().iter() {
            let name = String::from_utf8_lossy(section.raw_name()).into_owned();
            let start = usize::try_from(section.virtual_address.get(LE))?;
            let raw = section
                .pe_data(file)
                .ok()
                .with_context(|| format!("section {name} lies outside the file"))?;
            let in_memory = usize::try_from(section.virtual_size.get(LE))?;
            place(&mut bytes, start, &raw[..raw.len().min(in_memory)])
                .with_context(|| format!("section {name}"))?;
            let flags = section.characteristics.get(LE);
            let rights = match (
                flags.contains(IMAGE_SCN_MEM_WRITE),
                flags.contains(IMAGE_SCN_MEM_EXECUTE),
            ) {
                (true, true) => bail!("section {name} is writable and executable"),
                (true, false) => Rights::ReadWrite,
                (false, true) => Rights::ReadExecute,
                (false, false) => Rights::Read,
            };
            let end = start + in_memory;
            ensure!(end <= size, "section {name} ends beyond the image");
            for offset in (start as u64..end as u64).step_by(usize::try_from(PAGE)?) {
                pages.push(Page { offset, rights });
            }
        }
        relocate(
            &pe,
            file,
            &mut bytes,
            base.wrapping_sub(optional.image_base()),
        )?;
        // The header in memory tells where the image really lies, as NT's does.
        let nt = usize::try_from(pe.dos_header().nt_headers_offset())?;
        place(&mut bytes, nt + 24 + 24, &base.to_le_bytes())?;
        Ok(Self {
            bytes,
            pages,
            entry,
        })
    }
}

fn place(image: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    image
        .get_mut(at..at + bytes.len())
        .context("lies beyond the end of the image")?
        .copy_from_slice(bytes);
    Ok(())
}

fn relocate(pe: &PeFile64<'_>, file: &[u8], image: &mut [u8], delta: u64) -> Result<()> {
    let blocks = pe
        .data_directories()
        .relocation_blocks(file, &pe.section_table())
        .context("base relocations")?;
    let Some(mut blocks) = blocks else {
        bail!("no base relocations");
    };
    while let Some(block) = blocks.next().context("base relocations")? {
        for relocation in block {
            match relocation.typ {
                IMAGE_REL_BASED_ABSOLUTE => {}
                IMAGE_REL_BASED_DIR64 => {
                    let at = usize::try_from(relocation.virtual_address)?;
                    let slot = image
                        .get_mut(at..at + 8)
                        .context("a relocation lies beyond the image")?;
                    let value = u64::from_le_bytes(slot.try_into()?).wrapping_add(delta);
                    slot.copy_from_slice(&value.to_le_bytes());
                }
                other => bail!(
                    "relocation type {other} at {:#x}",
                    relocation.virtual_address
                ),
            }
        }
    }
    Ok(())
}
