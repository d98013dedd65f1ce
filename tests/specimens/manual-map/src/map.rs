//! Maps a driver image by hand: sections, relocations, imports.
//!
//! The loader's work, done where no loader looks. PASSIVE_LEVEL.

use object::LittleEndian as LE;
use object::pe::{IMAGE_REL_BASED_DIR64, ImageNtHeaders64};
use object::read::pe::{ImageOptionalHeader, Import, PeFile64};
use wdk_standin::wdk_sys::{UNICODE_STRING, ntddk::MmGetSystemRoutineAddress};

use crate::harness::{CodePages, PAGE};

/// A mapped image.
pub(crate) struct Mapped {
    pages: CodePages,
    entry: u32,
}

impl Mapped {
    /// Address of the entry point.
    pub(crate) fn entry(&self) -> u64 {
        self.pages.address() + u64::from(self.entry)
    }
}

/// Longest name of an import, in characters.
const NAME_MOST: usize = 64;

/// Maps `file` into executable pool. The headers stay behind, as with every
/// loader of this kind.
pub(crate) fn map(file: &[u8]) -> Option<Mapped> {
    let pe = PeFile64::parse(file).ok()?;
    let header = pe.nt_headers().optional_header;
    let size = header.size_of_image() as usize;
    let mut pages = CodePages::allocate(size.div_ceil(PAGE))?;
    pages.bytes().fill(0);
    for section in pe.section_table().iter() {
        let data = section.pe_data(file).ok()?;
        let used = data.len().min(section.virtual_size.get(LE) as usize);
        let fits = pages.write(section.virtual_address.get(LE) as usize, data.get(..used)?);
        fits.then_some(())?;
    }
    relocate(&pe, file, &mut pages, header.image_base())?;
    bind(&pe, file, &mut pages)?;
    Some(Mapped {
        pages,
        entry: header.address_of_entry_point(),
    })
}

fn relocate(pe: &PeFile64<'_>, file: &[u8], pages: &mut CodePages, linked: u64) -> Option<()> {
    let moved = pages.address().wrapping_sub(linked);
    let sections = pe.section_table();
    let blocks = pe.data_directories().relocation_blocks(file, &sections);
    let Some(mut blocks) = blocks.ok()? else {
        return Some(());
    };
    while let Some(block) = blocks.next().ok()? {
        for relocation in block {
            if relocation.typ == IMAGE_REL_BASED_DIR64 {
                let at = relocation.virtual_address as usize;
                let bytes = pages.bytes().get_mut(at..at.checked_add(8)?)?;
                let value = u64::from_le_bytes(bytes.try_into().ok()?);
                bytes.copy_from_slice(&value.wrapping_add(moved).to_le_bytes());
            }
        }
    }
    Some(())
}

fn bind(pe: &PeFile64<'_>, file: &[u8], pages: &mut CodePages) -> Option<()> {
    let sections = pe.section_table();
    let table = pe.data_directories().import_table(file, &sections).ok()??;
    let mut descriptors = table.descriptors().ok()?;
    while let Some(descriptor) = descriptors.next().ok()? {
        let mut slot = descriptor.first_thunk.get(LE) as usize;
        let mut thunks = table.thunks(descriptor.original_first_thunk.get(LE)).ok()?;
        while let Some(thunk) = thunks.next::<ImageNtHeaders64>().ok()? {
            let Import::Name(_, name) = table.import::<ImageNtHeaders64>(thunk).ok()? else {
                return None;
            };
            let address = routine(name)?.to_le_bytes();
            pages.write(slot, &address).then_some(())?;
            slot += 8;
        }
    }
    Some(())
}

/// Address of an exported routine of the kernel or HAL.
fn routine(name: &[u8]) -> Option<u64> {
    let mut units = [0; NAME_MOST];
    let units = units.get_mut(..name.len())?;
    for (unit, byte) in units.iter_mut().zip(name) {
        *unit = u16::from(*byte);
    }
    let bytes = u16::try_from(size_of_val(units)).ok()?;
    let mut name = UNICODE_STRING {
        Length: bytes,
        MaximumLength: bytes,
        Buffer: units.as_mut_ptr(),
    };
    // SAFETY: PASSIVE_LEVEL; the name outlives the call.
    let address = unsafe { MmGetSystemRoutineAddress(&raw mut name) };
    (!address.is_null()).then_some(address as u64)
}
