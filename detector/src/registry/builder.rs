//! Building a snapshot, at `PASSIVE_LEVEL`.
//!
//! The driver holds the truth (a list of modules in pool memory) and makes a new
//! `Builder` whenever it changes. Every allocation can fail and says so; nothing
//! here panics on hostile headers. Not shared, so no lock.

use super::snapshot::{
    FrameRecord, Header, MAGIC, MODULE_INITIALIZED, ModuleRecord, NAME_ROOM, NO_FRAME, NO_PAGES,
    PageRecord, SectionRecord, VERSION,
};
use super::{MODULE_NAME_MAX, Section};
use alloc::vec::Vec;
use zerocopy::IntoBytes;

const PAGE: u32 = 4096;

/// A module to be added.
#[derive(Clone, Copy, Debug)]
pub struct ModuleSpec<'a> {
    /// File name without directory; cut to [`MODULE_NAME_MAX`] bytes at a
    /// character's boundary.
    pub name: &'a str,
    /// First virtual address.
    pub base: u64,
    /// Bytes.
    pub size: u32,
    /// Position in the order of loading.
    pub load_order: u32,
    /// When it was loaded, 100 ns since 1601 (UTC); 0 if before the start.
    pub load_time: u64,
    /// Generation of the first snapshot with it.
    pub since: u32,
    /// Its entry point has returned: discardable sections are gone, their
    /// addresses are dead and their frames are not the module's any more.
    pub initialized: bool,
}

/// Why a snapshot cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// No memory.
    NoMemory,
    /// The module's range is empty, wraps or overlaps another module's.
    Range,
    /// More than 65,535 modules or sections, or more than 4 GiB.
    TooMany,
}

struct Pending {
    record: ModuleRecord,
    /// Where its sections start in `Builder::sections`.
    sections: usize,
}

/// Collects modules and makes one flat snapshot of them.
#[derive(Default)]
pub struct Builder {
    generation: u32,
    modules: Vec<Pending>,
    sections: Vec<SectionRecord>,
    /// `module` is the index into `modules`, `section` the one into `sections`,
    /// both in order of adding.
    frames: Vec<FrameRecord>,
    pages: Vec<PageRecord>,
}

impl Builder {
    /// Starts the snapshot number `generation`.
    #[must_use]
    pub fn new(generation: u32) -> Builder {
        Builder {
            generation,
            ..Builder::default()
        }
    }

    /// Adds a module with its sections (see [`super::image::sections`]).
    ///
    /// Sections are clipped to the module and to the section that follows, and
    /// extend to a whole page. `frame` is asked for the frame number of each page
    /// (by virtual address) of the live executable sections; `None` leaves the
    /// page out.
    ///
    /// # Errors
    /// [`BuildError`]; the module is then not part of the snapshot.
    pub fn module(
        &mut self,
        spec: &ModuleSpec<'_>,
        sections: impl IntoIterator<Item = Section>,
        mut frame: impl FnMut(u64) -> Option<u64>,
    ) -> Result<(), BuildError> {
        let end = spec.base.checked_add(u64::from(spec.size));
        let end = end.ok_or(BuildError::Range)?;
        let overlaps = |m: &Pending| {
            let base = m.record.base.get();
            spec.base < base.saturating_add(u64::from(m.record.size.get())) && base < end
        };
        if spec.size == 0 || self.modules.iter().any(overlaps) {
            return Err(BuildError::Range);
        }
        let module = u16::try_from(self.modules.len()).map_err(|_| BuildError::TooMany)?;
        if module == u16::MAX {
            return Err(BuildError::TooMany);
        }
        let sections_before = self.sections.len();
        let frames_before = self.frames.len();
        let pages_before = self.pages.len();
        let added = self.add_sections(spec, module, sections, &mut frame);
        let added = added.and_then(|()| self.add_module(spec, sections_before));
        if added.is_err() {
            self.sections.truncate(sections_before);
            self.frames.truncate(frames_before);
            self.pages.truncate(pages_before);
        }
        added
    }

    fn add_module(&mut self, spec: &ModuleSpec<'_>, sections: usize) -> Result<(), BuildError> {
        let count = self.sections.len() - sections;
        let name = cut(spec.name);
        let mut room = [0; NAME_ROOM];
        room[..name.len()].copy_from_slice(name.as_bytes());
        let record = ModuleRecord {
            base: spec.base.into(),
            load_time: spec.load_time.into(),
            size: spec.size.into(),
            load_order: spec.load_order.into(),
            first_section: 0.into(),
            since: spec.since.into(),
            section_count: u16::try_from(count)
                .map_err(|_| BuildError::TooMany)?
                .into(),
            name_length: u8::try_from(name.len()).unwrap_or(0),
            flags: if spec.initialized {
                MODULE_INITIALIZED
            } else {
                0
            },
            name: room,
        };
        push(&mut self.modules, Pending { record, sections })
    }

    fn add_sections(
        &mut self,
        spec: &ModuleSpec<'_>,
        module: u16,
        sections: impl IntoIterator<Item = Section>,
        frame: &mut impl FnMut(u64) -> Option<u64>,
    ) -> Result<(), BuildError> {
        let start = self.sections.len();
        for section in sections {
            if section.rva >= spec.size || section.size == 0 {
                continue;
            }
            let record = SectionRecord {
                rva: section.rva.into(),
                size: section.size.into(),
                characteristics: section.characteristics.into(),
                first_page: NO_PAGES.into(),
                module: module.into(),
                name_length: u8::try_from(section.name().len()).unwrap_or(8),
                reserved: 0,
                name: section.name,
            };
            push(&mut self.sections, record)?;
        }
        if self.sections.len() >= usize::from(u16::MAX) {
            return Err(BuildError::TooMany);
        }
        let own = &mut self.sections[start..];
        own.sort_unstable_by_key(|s| (s.rva.get(), s.size.get()));
        let mut limit = spec.size;
        for section in own.iter_mut().rev() {
            let rva = section.rva.get();
            let wanted = rva.saturating_add(section.size.get());
            let whole = wanted.checked_next_multiple_of(PAGE).unwrap_or(u32::MAX);
            section.size = (whole.min(limit) - rva).into();
            limit = rva;
        }
        for index in start..self.sections.len() {
            self.add_frames(spec, module, index, frame)?;
        }
        Ok(())
    }

    fn add_frames(
        &mut self,
        spec: &ModuleSpec<'_>,
        module: u16,
        index: usize,
        frame: &mut impl FnMut(u64) -> Option<u64>,
    ) -> Result<(), BuildError> {
        let section = self.sections[index].read();
        if !section.executable() || (section.discardable() && spec.initialized) {
            return Ok(());
        }
        let first = u32::try_from(self.pages.len()).map_err(|_| BuildError::TooMany)?;
        self.sections[index].first_page = first.into();
        let end = section.rva + section.size;
        let mut rva = section.rva & !(PAGE - 1);
        while rva < end {
            let pfn = frame(spec.base + u64::from(rva));
            push(&mut self.pages, pfn.unwrap_or(NO_FRAME).into())?;
            if let Some(pfn) = pfn {
                let record = FrameRecord {
                    pfn: pfn.into(),
                    rva: rva.into(),
                    module: module.into(),
                    section: u16::try_from(index)
                        .map_err(|_| BuildError::TooMany)?
                        .into(),
                };
                push(&mut self.frames, record)?;
            }
            let Some(next) = rva.checked_add(PAGE) else {
                break;
            };
            rva = next;
        }
        Ok(())
    }

    /// The snapshot: modules by base, their sections by offset, frames by number.
    ///
    /// # Errors
    /// [`BuildError::NoMemory`], [`BuildError::TooMany`].
    pub fn finish(mut self) -> Result<Vec<u8>, BuildError> {
        let mut order: Vec<u16> = reserve(self.modules.len())?;
        order.extend((0..self.modules.len()).filter_map(|i| u16::try_from(i).ok()));
        order.sort_unstable_by_key(|i| self.modules[usize::from(*i)].record.base.get());

        let mut module_index: Vec<u16> = reserve(self.modules.len())?;
        module_index.resize(self.modules.len(), 0);
        let mut section_index: Vec<u16> = reserve(self.sections.len())?;
        section_index.resize(self.sections.len(), 0);
        let mut modules: Vec<ModuleRecord> = reserve(self.modules.len())?;
        let mut sections: Vec<SectionRecord> = reserve(self.sections.len())?;
        for old in order {
            let pending = &self.modules[usize::from(old)];
            let new = u16::try_from(modules.len()).map_err(|_| BuildError::TooMany)?;
            module_index[usize::from(old)] = new;
            let mut record = pending.record;
            let first = u32::try_from(sections.len()).map_err(|_| BuildError::TooMany)?;
            record.first_section = first.into();
            let count = usize::from(record.section_count.get());
            let own = pending.sections..pending.sections + count;
            let indices = &mut section_index[own.clone()];
            for (section, index) in self.sections[own].iter().zip(indices) {
                *index = u16::try_from(sections.len()).map_err(|_| BuildError::TooMany)?;
                let mut section = *section;
                section.module = module_index[usize::from(section.module.get())].into();
                sections.push(section);
            }
            modules.push(record);
        }
        for frame in &mut self.frames {
            frame.module = module_index[usize::from(frame.module.get())].into();
            frame.section = section_index[usize::from(frame.section.get())].into();
        }
        self.frames
            .sort_unstable_by_key(|f| (f.pfn.get(), f.module.get(), f.rva.get()));
        assemble(
            self.generation,
            &modules,
            &sections,
            &self.frames,
            &self.pages,
        )
    }
}

fn assemble(
    generation: u32,
    modules: &[ModuleRecord],
    sections: &[SectionRecord],
    frames: &[FrameRecord],
    pages: &[PageRecord],
) -> Result<Vec<u8>, BuildError> {
    let count = |n: usize| u32::try_from(n).map_err(|_| BuildError::TooMany);
    let modules_at = size_of::<Header>();
    let sections_at = modules_at + size_of_val(modules);
    let frames_at = sections_at + size_of_val(sections);
    let pages_at = frames_at + size_of_val(frames);
    let byte_length = pages_at + size_of_val(pages);
    let header = Header {
        magic: MAGIC.into(),
        version: VERSION.into(),
        generation: generation.into(),
        byte_length: count(byte_length)?.into(),
        modules: count(modules.len())?.into(),
        sections: count(sections.len())?.into(),
        frames: count(frames.len())?.into(),
        modules_at: count(modules_at)?.into(),
        sections_at: count(sections_at)?.into(),
        frames_at: count(frames_at)?.into(),
        pages: count(pages.len())?.into(),
        pages_at: count(pages_at)?.into(),
        reserved: 0.into(),
    };
    let mut bytes = reserve(byte_length)?;
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(modules.as_bytes());
    bytes.extend_from_slice(sections.as_bytes());
    bytes.extend_from_slice(frames.as_bytes());
    bytes.extend_from_slice(pages.as_bytes());
    Ok(bytes)
}

fn reserve<T>(count: usize) -> Result<Vec<T>, BuildError> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(count)
        .map_err(|_| BuildError::NoMemory)?;
    Ok(vec)
}

fn push<T>(vec: &mut Vec<T>, value: T) -> Result<(), BuildError> {
    vec.try_reserve(1).map_err(|_| BuildError::NoMemory)?;
    vec.push(value);
    Ok(())
}

fn cut(name: &str) -> &str {
    let mut end = name.len().min(MODULE_NAME_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}
