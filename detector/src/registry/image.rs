//! Sections and exports of a PE image that lies mapped in memory.
//!
//! The bytes are another driver's and hostile: every read is checked against the
//! slice, loops are bounded by it, and nonsense gives an error or fewer results.
//! The slice must stay readable while it is used: at `PASSIVE_LEVEL`, with the
//! module held (in its load callback, or under the loader's list lock). Root
//! mode never calls this.
//!
//! Formats: Microsoft's "PE Format", sections "Section Table" and "Export
//! Directory Table".

use super::Section;
use object::LittleEndian as LE;
use object::pe::{self, ImageDosHeader, ImageNtHeaders64};
use object::read::pe::{ExportTable, ImageNtHeaders, ImageOptionalHeader};

/// Longest export name that is returned, bytes; longer ones are cut.
pub const EXPORT_NAME_MAX: usize = 63;

/// What the headers say of an image.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Bytes of the mapped image.
    pub size: u32,
    /// Offset of the entry point from the base.
    pub entry: u32,
    /// Time stamp of the link, or a hash in its place.
    pub time_date_stamp: u32,
    /// Checksum as in the headers.
    pub checksum: u32,
    /// Offset and size of the export directory, if there is one.
    pub exports: Option<(u32, u32)>,
    table: &'a [pe::ImageSectionHeader],
}

impl<'a> Image<'a> {
    /// Reads the headers of a 64-bit image; `headers` starts at its base and
    /// should be its first 4096 bytes or more. `None` if they are not those of
    /// a 64-bit PE or do not fit.
    #[must_use]
    pub fn parse(headers: &'a [u8]) -> Option<Image<'a>> {
        let mut offset = ImageDosHeader::parse(headers)
            .ok()?
            .nt_headers_offset()
            .into();
        let (nt, directories) = ImageNtHeaders64::parse(headers, &mut offset).ok()?;
        let sections = nt.sections(headers, offset).ok()?;
        let optional = nt.optional_header();
        let exports = directories
            .get(pe::IMAGE_DIRECTORY_ENTRY_EXPORT)
            .map(|d| (d.virtual_address.get(LE), d.size.get(LE)))
            .filter(|(rva, size)| *rva != 0 && *size != 0);
        Some(Image {
            size: optional.size_of_image(),
            entry: optional.address_of_entry_point(),
            time_date_stamp: nt.file_header().time_date_stamp.get(LE),
            checksum: optional.check_sum(),
            exports,
            table: sections.iter().as_slice(),
        })
    }

    /// The sections, in the order of the file; sizes are the virtual ones.
    pub fn sections(&self) -> impl Iterator<Item = Section> + use<'a> {
        self.table.iter().map(|s| Section {
            name: s.name,
            rva: s.virtual_address.get(LE),
            // Linkers may leave the virtual size 0; the loader then maps the
            // raw size.
            size: match s.virtual_size.get(LE) {
                0 => s.size_of_raw_data.get(LE),
                size => size,
            },
            characteristics: s.characteristics.get(LE).0,
        })
    }
}

/// The sections of a mapped image; see [`Image`].
#[must_use]
pub fn sections(headers: &[u8]) -> Option<impl Iterator<Item = Section> + use<'_>> {
    Some(Image::parse(headers)?.sections())
}

/// The export nearest before `rva`: its name and the distance to it.
///
/// `directory` holds the bytes of the export directory and `directory_rva` is
/// their offset from the image's base (both from [`Image::exports`]). Forwarders
/// and exports without a name do not count.
#[must_use]
pub fn nearest_export(directory: &[u8], directory_rva: u32, rva: u32) -> Option<(&[u8], u32)> {
    let table = ExportTable::parse(directory, directory_rva).ok()?;
    let end = directory_rva.checked_add(u32::try_from(directory.len()).ok()?)?;
    let mut best: Option<(u32, u32)> = None;
    for (name, index) in table.name_iter() {
        let Ok(address) = table.address_by_index(index) else {
            continue;
        };
        let forwarder = address >= directory_rva && address < end;
        let nearer = best.is_none_or(|(nearest, _)| address > nearest);
        if address <= rva && address != 0 && !forwarder && nearer {
            best = Some((address, name));
        }
    }
    let (address, name) = best?;
    let name = table.name_from_pointer(name).ok()?;
    Some((&name[..name.len().min(EXPORT_NAME_MAX)], rva - address))
}

#[cfg(all(test, feature = "alloc"))]
mod tests;
