//! Portable Executable images as the loader needs them: checks, layout in
//! memory, base relocations, imports and exports.
//!
//! Pure: works on byte slices, owns nothing, needs no kernel; the host tests
//! compile this very file. The formats are those of Microsoft's "PE Format"
//! specification; the fields are decoded by the `object` crate.

use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{
    DataDirectories, ExportTable, ExportTarget, ImageNtHeaders, ImageOptionalHeader, Import,
    ImportTable, SectionTable,
};

/// Bytes in a page, and the only section alignment that the loader accepts.
pub(crate) const PAGE_SIZE: u32 = 4096;

/// Why a file is not a driver that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImageError {
    /// Not a PE32+ file, or cut short.
    NotAnImage,
    /// Not for x86-64.
    WrongMachine,
    /// Not of the native subsystem.
    NotNative,
    /// Sections are not aligned to pages.
    SectionAlignment,
    /// A section lies outside the image or the file.
    SectionBounds,
    /// The checksum in the header is not that of the file.
    Checksum,
    /// The relocations were stripped, or are malformed.
    Relocations,
    /// The import directory is malformed.
    Imports,
}

/// What one section's pages may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// `IMAGE_SCN_MEM_WRITE`.
    pub(crate) write: bool,
    /// `IMAGE_SCN_MEM_EXECUTE`.
    pub(crate) execute: bool,
    /// `IMAGE_SCN_MEM_DISCARDABLE`, or a name that starts with `INIT`.
    pub(crate) discardable: bool,
}

/// One section of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section<'a> {
    /// Name, padded with zeros.
    pub(crate) name: [u8; 8],
    /// Offset from the image's base, in bytes.
    pub(crate) rva: u32,
    /// Size in memory, in bytes, not rounded.
    pub(crate) size: u32,
    /// Initial contents; the rest of the section is zero.
    pub(crate) raw: &'a [u8],
    /// What its pages may be used for.
    pub(crate) rights: Rights,
}

impl Section<'_> {
    /// Number of pages in memory.
    pub(crate) const fn pages(&self) -> u32 {
        self.size.div_ceil(PAGE_SIZE)
    }
}

/// What an import asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symbol<'a> {
    /// By name.
    Name(&'a [u8]),
    /// By ordinal.
    Ordinal(u16),
}

/// An import that no library satisfies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unresolved<'a> {
    /// The wanted library.
    pub(crate) library: &'a [u8],
    /// The wanted function.
    pub(crate) symbol: Symbol<'a>,
}

/// Why the imports could not be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindError<'a> {
    /// The directory is malformed.
    Malformed,
    /// No library has this export.
    Unresolved(Unresolved<'a>),
}

/// A checked PE32+ file.
pub(crate) struct Image<'a> {
    data: &'a [u8],
    nt: &'a pe::ImageNtHeaders64,
    directories: DataDirectories<'a>,
    table: SectionTable<'a>,
}

impl<'a> Image<'a> {
    /// Reads and checks the headers of a driver file.
    ///
    /// # Errors
    /// The first check that fails, in the order of [`ImageError`].
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, ImageError> {
        let dos = pe::ImageDosHeader::parse(data).map_err(|_| ImageError::NotAnImage)?;
        let mut offset = u64::from(dos.nt_headers_offset());
        let (nt, directories) =
            pe::ImageNtHeaders64::parse(data, &mut offset).map_err(|_| ImageError::NotAnImage)?;
        let table = nt
            .sections(data, offset)
            .map_err(|_| ImageError::NotAnImage)?;
        let image = Self {
            data,
            nt,
            directories,
            table,
        };
        if nt.file_header.machine.get(LE) != pe::IMAGE_FILE_MACHINE_AMD64 {
            return Err(ImageError::WrongMachine);
        }
        let optional = &nt.optional_header;
        if optional.subsystem.get(LE) != pe::IMAGE_SUBSYSTEM_NATIVE {
            return Err(ImageError::NotNative);
        }
        if optional.section_alignment.get(LE) != PAGE_SIZE {
            return Err(ImageError::SectionAlignment);
        }
        image.check_sections()?;
        if optional.check_sum.get(LE) != checksum(data, checksum_offset(dos.nt_headers_offset())) {
            return Err(ImageError::Checksum);
        }
        Ok(image)
    }

    fn check_sections(&self) -> Result<(), ImageError> {
        let mut end = self.header_size().div_ceil(PAGE_SIZE) * PAGE_SIZE;
        for header in self.table.iter() {
            let rva = header.virtual_address.get(LE);
            let size = virtual_size(header);
            if rva < end || rva % PAGE_SIZE != 0 || size == 0 {
                return Err(ImageError::SectionBounds);
            }
            end = rva.checked_add(size).ok_or(ImageError::SectionBounds)?;
            if end > self.size() || raw(self.data, header).is_none() {
                return Err(ImageError::SectionBounds);
            }
            end = end.div_ceil(PAGE_SIZE) * PAGE_SIZE;
        }
        if self.header_size() as usize > self.data.len() || self.header_size() > self.size() {
            return Err(ImageError::SectionBounds);
        }
        Ok(())
    }

    /// Size in memory, in bytes, a multiple of the page size.
    pub(crate) fn size(&self) -> u32 {
        let size = self.nt.optional_header.size_of_image.get(LE);
        size.saturating_add(PAGE_SIZE - 1) / PAGE_SIZE * PAGE_SIZE
    }

    /// The base that the linker assumed.
    pub(crate) fn preferred_base(&self) -> u64 {
        self.nt.optional_header.image_base()
    }

    /// Offset of the entry point; 0 when there is none.
    pub(crate) fn entry(&self) -> u32 {
        self.nt.optional_header.address_of_entry_point()
    }

    /// Size of the headers, in bytes.
    pub(crate) fn header_size(&self) -> u32 {
        self.nt.optional_header.size_of_headers()
    }

    /// The sections, in the order of the file.
    pub(crate) fn sections(&self) -> impl Iterator<Item = Section<'a>> + '_ {
        self.table.iter().map(|header| {
            let flags = header.characteristics.get(LE);
            Section {
                name: header.name,
                rva: header.virtual_address.get(LE),
                size: virtual_size(header),
                raw: raw(self.data, header).unwrap_or(&[]),
                rights: Rights {
                    write: flags.contains(pe::IMAGE_SCN_MEM_WRITE),
                    execute: flags.contains(pe::IMAGE_SCN_MEM_EXECUTE),
                    discardable: flags.contains(pe::IMAGE_SCN_MEM_DISCARDABLE)
                        || header.name.starts_with(b"INIT"),
                },
            }
        })
    }

    /// Copies headers and sections to where they belong in memory.
    ///
    /// `memory` is zeroed and at least [`Self::size`] bytes long.
    pub(crate) fn lay_out(&self, memory: &mut [u8]) {
        let headers = self.header_size() as usize;
        memory[..headers].copy_from_slice(&self.data[..headers]);
        for section in self.sections() {
            let length = section.raw.len().min(section.size as usize);
            let start = section.rva as usize;
            memory[start..start + length].copy_from_slice(&section.raw[..length]);
        }
    }

    /// Applies the base relocations to a laid-out image that will run at
    /// `base`, and writes `base` into its header as Windows' loader does.
    ///
    /// # Errors
    /// [`ImageError::Relocations`] when they are stripped or malformed.
    pub(crate) fn relocate(&self, memory: &mut [u8], base: u64) -> Result<(), ImageError> {
        let delta = base.wrapping_sub(self.preferred_base());
        if delta == 0 {
            return Ok(());
        }
        let blocks = self
            .directories
            .relocation_blocks(self.data, &self.table)
            .map_err(|_| ImageError::Relocations)?;
        let flags = self.nt.file_header.characteristics.get(LE);
        if flags.contains(pe::IMAGE_FILE_RELOCS_STRIPPED) {
            return Err(ImageError::Relocations);
        }
        if let Some(mut blocks) = blocks {
            while let Some(block) = blocks.next().map_err(|_| ImageError::Relocations)? {
                for relocation in block {
                    apply(memory, relocation.virtual_address, relocation.typ, delta)?;
                }
            }
        }
        self.write_base(memory, base);
        Ok(())
    }

    fn write_base(&self, memory: &mut [u8], base: u64) {
        const BASE_IN_OPTIONAL_HEADER: usize = 24;
        let Ok(dos) = pe::ImageDosHeader::parse(self.data) else {
            return;
        };
        let at = dos.nt_headers_offset() as usize + 24 + BASE_IN_OPTIONAL_HEADER;
        if let Some(field) = memory.get_mut(at..at + 8) {
            field.copy_from_slice(&base.to_le_bytes());
        }
    }

    fn imports(&self) -> Result<Option<ImportTable<'a>>, ImageError> {
        self.directories
            .import_table(self.data, &self.table)
            .map_err(|_| ImageError::Imports)
    }

    /// Calls `visit` with the name of each library that is imported from.
    ///
    /// # Errors
    /// [`ImageError::Imports`] when the directory is malformed.
    pub(crate) fn libraries(&self, mut visit: impl FnMut(&'a [u8])) -> Result<(), ImageError> {
        let Some(table) = self.imports()? else {
            return Ok(());
        };
        let mut descriptors = table.descriptors().map_err(|_| ImageError::Imports)?;
        while let Some(descriptor) = descriptors.next().map_err(|_| ImageError::Imports)? {
            visit(
                table
                    .name(descriptor.name.get(LE))
                    .map_err(|_| ImageError::Imports)?,
            );
        }
        Ok(())
    }

    /// Fills the import address table of a laid-out image with the addresses
    /// that `resolve` gives.
    ///
    /// # Errors
    /// The first import that `resolve` does not know.
    pub(crate) fn bind(
        &self,
        memory: &mut [u8],
        mut resolve: impl FnMut(&'a [u8], Symbol<'a>) -> Option<u64>,
    ) -> Result<(), BindError<'a>> {
        let malformed = |_| BindError::Malformed;
        let Some(table) = self.imports().map_err(|_| BindError::Malformed)? else {
            return Ok(());
        };
        let mut descriptors = table.descriptors().map_err(malformed)?;
        while let Some(descriptor) = descriptors.next().map_err(malformed)? {
            let library = table.name(descriptor.name.get(LE)).map_err(malformed)?;
            let slots = descriptor.first_thunk.get(LE);
            let lookup = match descriptor.original_first_thunk.get(LE) {
                0 => slots,
                rva => rva,
            };
            let mut thunks = table.thunks(lookup).map_err(malformed)?;
            let mut slot = slots as usize;
            while let Some(thunk) = thunks.next::<pe::ImageNtHeaders64>().map_err(malformed)? {
                let symbol = match table
                    .import::<pe::ImageNtHeaders64>(thunk)
                    .map_err(malformed)?
                {
                    Import::Ordinal(ordinal) => Symbol::Ordinal(ordinal),
                    Import::Name(_, name) => Symbol::Name(name),
                };
                let address = resolve(library, symbol)
                    .ok_or(BindError::Unresolved(Unresolved { library, symbol }))?;
                memory
                    .get_mut(slot..slot + 8)
                    .ok_or(BindError::Malformed)?
                    .copy_from_slice(&address.to_le_bytes());
                slot += 8;
            }
        }
        Ok(())
    }
}

/// The exports of an image as it lies in memory.
pub(crate) struct Exports<'a> {
    table: ExportTable<'a>,
}

/// Where an export leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Export<'a> {
    /// Offset from the image's base.
    Rva(u32),
    /// `library.name` in another image, library first.
    Forward(&'a [u8], Symbol<'a>),
}

impl<'a> Exports<'a> {
    /// Reads the export directory of a laid-out image; `None` if it has none.
    pub(crate) fn of(memory: &'a [u8]) -> Option<Self> {
        let (_, directories) = headers(memory)?;
        let (rva, size) = directories
            .get(pe::IMAGE_DIRECTORY_ENTRY_EXPORT)?
            .address_range();
        if rva == 0 {
            return None;
        }
        let data = memory.get(rva as usize..rva as usize + size as usize)?;
        Some(Self {
            table: ExportTable::parse(data, rva).ok()?,
        })
    }

    /// Looks one export up.
    pub(crate) fn find(&self, symbol: Symbol<'_>) -> Option<Export<'a>> {
        let target = match symbol {
            Symbol::Ordinal(ordinal) => self
                .table
                .target_by_ordinal(object::read::pe::ExportOrdinal(ordinal)),
            Symbol::Name(name) => {
                let names = self.table.name_pointers();
                // The name pointer table is sorted (PE Format, "Export Name
                // Pointer Table").
                let position = names.binary_search_by(|pointer| {
                    self.table
                        .name_from_pointer(pointer.get(LE))
                        .unwrap_or(&[])
                        .cmp(name)
                });
                let index = self.table.name_ordinals().get(position.ok()?)?.get(LE);
                self.table.target_by_index(index)
            }
        };
        Some(match target.ok()? {
            ExportTarget::Address(rva) => Export::Rva(rva),
            ExportTarget::ForwardByName(library, name) => {
                Export::Forward(library, Symbol::Name(name))
            }
            ExportTarget::ForwardByOrdinal(library, ordinal) => {
                Export::Forward(library, Symbol::Ordinal(ordinal.0))
            }
        })
    }
}

/// The NT headers of an image in memory or of a file, without the checks that
/// loading makes.
pub(crate) fn headers(memory: &[u8]) -> Option<(&pe::ImageNtHeaders64, DataDirectories<'_>)> {
    let dos = pe::ImageDosHeader::parse(memory).ok()?;
    let mut offset = u64::from(dos.nt_headers_offset());
    pe::ImageNtHeaders64::parse(memory, &mut offset).ok()
}

/// The section table of an image in memory.
pub(crate) fn mapped_sections(memory: &[u8]) -> Option<SectionTable<'_>> {
    let dos = pe::ImageDosHeader::parse(memory).ok()?;
    let mut offset = u64::from(dos.nt_headers_offset());
    let (nt, _) = pe::ImageNtHeaders64::parse(memory, &mut offset).ok()?;
    nt.sections(memory, offset).ok()
}

/// Offset of the security cookie of a laid-out and relocated image, from its
/// load configuration directory; `None` if there is none.
pub(crate) fn security_cookie(memory: &[u8], base: u64) -> Option<usize> {
    const COOKIE_IN_LOAD_CONFIG: usize = 0x58;
    let (_, directories) = headers(memory)?;
    let (rva, size) = directories
        .get(pe::IMAGE_DIRECTORY_ENTRY_LOAD_CONFIG)?
        .address_range();
    if rva == 0 || (size as usize) < COOKIE_IN_LOAD_CONFIG + 8 {
        return None;
    }
    let at = rva as usize + COOKIE_IN_LOAD_CONFIG;
    let address = u64::from_le_bytes(memory.get(at..at + 8)?.try_into().ok()?);
    let offset = usize::try_from(address.checked_sub(base)?).ok()?;
    (address != 0 && offset + 8 <= memory.len()).then_some(offset)
}

fn virtual_size(header: &pe::ImageSectionHeader) -> u32 {
    match header.virtual_size.get(LE) {
        0 => header.size_of_raw_data.get(LE),
        size => size,
    }
}

fn raw<'a>(data: &'a [u8], header: &pe::ImageSectionHeader) -> Option<&'a [u8]> {
    let start = header.pointer_to_raw_data.get(LE) as usize;
    let length = header.size_of_raw_data.get(LE) as usize;
    if start == 0 {
        return Some(&[]);
    }
    data.get(start..start.checked_add(length)?)
}

fn apply(
    memory: &mut [u8],
    rva: u32,
    kind: pe::BaseRelocationType,
    delta: u64,
) -> Result<(), ImageError> {
    match kind {
        pe::IMAGE_REL_BASED_ABSOLUTE => Ok(()),
        pe::IMAGE_REL_BASED_DIR64 => {
            let at = rva as usize;
            let field = memory.get_mut(at..at + 8).ok_or(ImageError::Relocations)?;
            let mut bytes = [0; 8];
            bytes.copy_from_slice(field);
            let value = u64::from_le_bytes(bytes).wrapping_add(delta);
            field.copy_from_slice(&value.to_le_bytes());
            Ok(())
        }
        _ => Err(ImageError::Relocations),
    }
}

const fn checksum_offset(nt_headers: u32) -> usize {
    nt_headers as usize + 24 + 64
}

/// The checksum of a PE file: the 16-bit words added with end-around carry,
/// the field itself left out, plus the file's length.
pub(crate) fn checksum(data: &[u8], field: usize) -> u32 {
    let mut sum = 0u32;
    for (index, pair) in data.chunks(2).enumerate() {
        let at = index * 2;
        if at == field || at == field + 2 {
            continue;
        }
        let word = u32::from(pair[0]) | pair.get(1).map_or(0, |&high| u32::from(high) << 8);
        sum += word;
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum.wrapping_add(u32::try_from(data.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    // A minimal native image with one section that holds code, an export
    // directory, a relocation and an import is built by the host tests'
    // fixture; here only what needs no file.

    #[test]
    fn checksum_skips_its_own_field_and_adds_the_length() {
        let mut data = [0u8; 64];
        data[10] = 1;
        assert_eq!(checksum(&data, 20), 1 + 64);
        data[20] = 0xFF;
        assert_eq!(checksum(&data, 20), 1 + 64);
        data[24] = 0xFF;
        assert_eq!(checksum(&data, 20), 0x100 + 64);
    }

    #[test]
    fn checksum_folds_the_carry() {
        let data = [0xFF; 8];
        assert_eq!(checksum(&data, 100), 0xFFFF + 8);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert_eq!(Image::parse(&[]).err(), Some(ImageError::NotAnImage));
        assert_eq!(
            Image::parse(&[b'M', b'Z', 0, 0]).err(),
            Some(ImageError::NotAnImage)
        );
    }

    #[test]
    fn a_relocation_of_another_kind_or_place_is_refused() {
        let mut memory = [0u8; 16];
        assert_eq!(apply(&mut memory, 4, pe::IMAGE_REL_BASED_DIR64, 7), Ok(()));
        assert_eq!(memory[4], 7);
        assert!(apply(&mut memory, 9, pe::IMAGE_REL_BASED_DIR64, 7).is_err());
        assert!(apply(&mut memory, 0, pe::IMAGE_REL_BASED_HIGHLOW, 7).is_err());
    }
}
