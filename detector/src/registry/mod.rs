//! Which modules are loaded, where their sections lie and in which frames.
//!
//! The list is the driver's own, fed by a list taken at start and by image-load
//! callbacks. `Builder` (at `PASSIVE_LEVEL`, feature `alloc`) turns it into one
//! flat snapshot; the driver publishes that to root mode, which reads it through
//! a [`View`].
//!
//! A snapshot lies in memory that the guest can write. So a `View` fixes its
//! bounds once, in constant time, and then trusts no content: each lookup is a
//! bounded search that on nonsense gives a wrong answer or none, never a panic,
//! an allocation or a read outside the bytes. It is callable at any IRQL and in
//! root mode, takes no lock, and borrows the bytes; who replaces them keeps the
//! old ones until every core has left its `View`.

#[cfg(feature = "alloc")]
mod builder;
pub mod image;
mod snapshot;

#[cfg(feature = "alloc")]
pub use builder::{BuildError, Builder, ModuleSpec};

use self::snapshot::{
    FrameRecord, Header, MAGIC, MODULE_INITIALIZED, ModuleRecord, NO_FRAME, PageRecord,
    SectionRecord, VERSION,
};
use object::pe;
use zerocopy::FromBytes;

/// Longest module name kept, in bytes of UTF-8.
pub const MODULE_NAME_MAX: usize = 63;

/// What lies at a virtual address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressHit {
    /// Index of the module.
    pub module: u16,
    /// Index of the section, `None` in the headers or in a gap.
    pub section: Option<u16>,
    /// Distance from the module's base, bytes.
    pub offset: u32,
    /// The file marks the section executable.
    pub executable: bool,
    /// The loader discards the section; see [`Section::discardable`].
    pub discardable: bool,
    /// The section still exists: it is not a discardable one of a module whose
    /// initialisation is over.
    pub live: bool,
}

/// What the loader put into a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHit {
    /// Index of the module.
    pub module: u16,
    /// Index of the section.
    pub section: u16,
    /// Offset of the page from the module's base, bytes.
    pub rva: u32,
}

/// A frame of a live executable section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Page frame number (guest-physical address / 4096).
    pub pfn: u64,
    /// What lies in it.
    pub hit: FrameHit,
}

/// A module of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module<'a> {
    /// Name as the system gave it; not necessarily UTF-8 if the snapshot was
    /// tampered with.
    pub name: &'a [u8],
    /// First virtual address.
    pub base: u64,
    /// Bytes.
    pub size: u32,
    /// Position in the order of loading.
    pub load_order: u32,
    /// When it was loaded, 100 ns since 1601 (UTC); 0 if before the start.
    pub load_time: u64,
    /// Generation of the first snapshot that held it: events of earlier ones
    /// cannot be about it.
    pub since: u32,
    /// Its entry point has returned, so discardable sections are gone.
    pub initialized: bool,
    /// Index of its first section.
    pub first_section: u32,
    /// Number of its sections.
    pub section_count: u16,
}

/// A section, in a snapshot or in an image's headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section {
    /// Name, padded with zeros.
    pub name: [u8; 8],
    /// Offset from the module's base, bytes.
    pub rva: u32,
    /// Bytes; whole pages in a snapshot.
    pub size: u32,
    /// Section flags as in the file (PE format, "Section Flags").
    pub characteristics: u32,
}

impl Section {
    /// The file marks it executable.
    #[must_use]
    pub const fn executable(&self) -> bool {
        self.characteristics & pe::IMAGE_SCN_MEM_EXECUTE.0 != 0
    }

    /// The file marks it writable.
    #[must_use]
    pub const fn writable(&self) -> bool {
        self.characteristics & pe::IMAGE_SCN_MEM_WRITE.0 != 0
    }

    /// The loader frees it when the entry point has returned: the file marks it
    /// discardable, or its name begins with `INIT` (Windows driver documentation,
    /// "Making Drivers Pageable"). `INITKDBG` stays for the kernel's debugger.
    #[must_use]
    pub const fn discardable(&self) -> bool {
        match &self.name {
            b"INITKDBG" => false,
            [b'I', b'N', b'I', b'T', ..] => true,
            _ => self.characteristics & pe::IMAGE_SCN_MEM_DISCARDABLE.0 != 0,
        }
    }

    /// The name without its padding.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let length = self.name.iter().position(|b| *b == 0);
        self.name
            .split_at_checked(length.unwrap_or(8))
            .map_or(&[], |(name, _)| name)
    }
}

/// A snapshot, read without trust.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    generation: u32,
    modules: &'a [ModuleRecord],
    sections: &'a [SectionRecord],
    frames: &'a [FrameRecord],
    pages: &'a [PageRecord],
}

impl<'a> View<'a> {
    /// A snapshot without modules: every address is foreign.
    pub const EMPTY: View<'static> = View {
        generation: 0,
        modules: &[],
        sections: &[],
        frames: &[],
        pages: &[],
    };

    /// Checks the header and fixes the tables' bounds, in constant time.
    ///
    /// `None` if this is no snapshot of this version or its tables do not lie
    /// within `bytes`. Bytes after the snapshot's own length are ignored.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<View<'a>> {
        let (header, _) = Header::ref_from_prefix(bytes).ok()?;
        // One copy, so that nothing checked can change before it is used.
        let header = *header;
        if header.magic.get() != MAGIC || header.version.get() != VERSION {
            return None;
        }
        let bytes = bytes.get(..usize::try_from(header.byte_length.get()).ok()?)?;
        Some(View {
            generation: header.generation.get(),
            modules: table(bytes, header.modules_at.get(), header.modules.get())?,
            sections: table(bytes, header.sections_at.get(), header.sections.get())?,
            frames: table(bytes, header.frames_at.get(), header.frames.get())?,
            pages: table(bytes, header.pages_at.get(), header.pages.get())?,
        })
    }

    /// The snapshot's number; a later snapshot has a higher one.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Number of modules.
    #[must_use]
    pub const fn module_count(&self) -> usize {
        self.modules.len()
    }

    /// Number of sections of all modules.
    #[must_use]
    pub const fn section_count(&self) -> usize {
        self.sections.len()
    }

    /// Number of frames of live executable sections.
    #[must_use]
    pub const fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// The module and section at a virtual address.
    #[must_use]
    pub fn by_address(&self, va: u64) -> Option<AddressHit> {
        let after = self.modules.partition_point(|m| m.base.get() <= va);
        let index = after.checked_sub(1)?;
        let module = self.modules.get(index)?;
        let offset = u32::try_from(va.checked_sub(module.base.get())?).ok()?;
        if offset >= module.size.get() {
            return None;
        }
        let found = self.section_at(module, offset);
        let initialized = module.flags & MODULE_INITIALIZED != 0;
        let section = found.map(|(_, record)| record.read());
        let executable = section.is_some_and(|s| s.executable());
        let discardable = section.is_some_and(|s| s.discardable());
        Some(AddressHit {
            module: u16::try_from(index).ok()?,
            section: found.map(|(index, _)| index),
            offset,
            executable,
            discardable,
            live: section.is_some() && !(discardable && initialized),
        })
    }

    fn section_at(&self, module: &ModuleRecord, offset: u32) -> Option<(u16, &'a SectionRecord)> {
        let first = usize::try_from(module.first_section.get()).ok()?;
        let count = usize::from(module.section_count.get());
        let own = self.sections.get(first..first.checked_add(count)?)?;
        let index = own
            .partition_point(|s| s.rva.get() <= offset)
            .checked_sub(1)?;
        let record = own.get(index)?;
        if offset.checked_sub(record.rva.get())? >= record.size.get() {
            return None;
        }
        Some((u16::try_from(first.checked_add(index)?).ok()?, record))
    }

    /// What the loader put into a frame; the first of several.
    ///
    /// Only frames of live executable sections are in a snapshot.
    #[must_use]
    pub fn by_frame(&self, pfn: u64) -> Option<FrameHit> {
        let first = self.frames.partition_point(|f| f.pfn.get() < pfn);
        let frame = self.frames.get(first)?.read();
        (frame.pfn == pfn).then_some(frame.hit)
    }

    /// The frame that held a page of a section when the snapshot was made.
    ///
    /// `offset` is from the module's base. `None` if the page was not resident,
    /// or is not one of a live executable section.
    #[must_use]
    pub fn frame_of(&self, section: u16, offset: u32) -> Option<u64> {
        let section = self.sections.get(usize::from(section))?;
        let first = usize::try_from(section.first_page.get()).ok()?;
        let within = (offset >> 12).checked_sub(section.rva.get() >> 12)?;
        if offset.checked_sub(section.rva.get())? >= section.size.get() {
            return None;
        }
        let index = first.checked_add(usize::try_from(within).ok()?)?;
        let pfn = self.pages.get(index)?.get();
        (pfn != NO_FRAME).then_some(pfn)
    }

    /// Every frame, by rising frame number.
    pub fn frames(&self) -> impl Iterator<Item = Frame> + use<'a> {
        self.frames.iter().map(FrameRecord::read)
    }

    /// The module with this index.
    #[must_use]
    pub fn module(&self, index: u16) -> Option<Module<'a>> {
        let record = self.modules.get(usize::from(index))?;
        let length = usize::from(record.name_length).min(MODULE_NAME_MAX);
        Some(Module {
            name: record.name.get(..length)?,
            base: record.base.get(),
            size: record.size.get(),
            load_order: record.load_order.get(),
            load_time: record.load_time.get(),
            since: record.since.get(),
            initialized: record.flags & MODULE_INITIALIZED != 0,
            first_section: record.first_section.get(),
            section_count: record.section_count.get(),
        })
    }

    /// The section with this index.
    #[must_use]
    pub fn section(&self, index: u16) -> Option<Section> {
        Some(self.sections.get(usize::from(index))?.read())
    }
}

fn table<T>(bytes: &[u8], at: u32, count: u32) -> Option<&[T]>
where
    T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable,
{
    let tail = bytes.get(usize::try_from(at).ok()?..)?;
    let (table, _) = <[T]>::ref_from_prefix_with_elems(tail, usize::try_from(count).ok()?).ok()?;
    Some(table)
}

impl SectionRecord {
    fn read(&self) -> Section {
        Section {
            name: self.name,
            rva: self.rva.get(),
            size: self.size.get(),
            characteristics: self.characteristics.get(),
        }
    }
}

impl FrameRecord {
    fn read(&self) -> Frame {
        Frame {
            pfn: self.pfn.get(),
            hit: FrameHit {
                module: self.module.get(),
                section: self.section.get(),
                rva: self.rva.get(),
            },
        }
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests;
