//! The registry of loaded modules, kept while monitoring runs.
//!
//! It begins with the system's list and follows image-load callbacks, which come
//! before a driver's entry point runs. Nothing tells of unloads, so the list is
//! asked for again every second and whenever there is something to judge, and
//! what is missing from it has gone: root mode takes its frames' right to be
//! executed, and its address range is remembered for findings to come. From
//! its modules a flat snapshot is built for root mode; frames are those that the
//! pages have at that moment, because pageable code moves.
//!
//! The `images` lock protects list and snapshot. It is never held while the
//! system's list is asked for or the callback is removed: those wait for loaders,
//! and a loader's callback waits for this lock. PASSIVE_LEVEL.

use alloc::vec::Vec;

use detector::finding::{Change, ExportName};
use detector::registry::image::{self, Image};
use detector::registry::{Builder, ModuleSpec, Section, View};
use detector::wire::StartError;

use crate::clock;
use crate::control::Driver;
use crate::lock::{Guard, WaitLock};
use crate::memory;
use crate::platform::physical_address;
use crate::status::{Failure, Status};
use crate::system_modules::{Entry, List as SystemList};
use crate::wdk_crates::wdk_sys::{
    HANDLE, NT_SUCCESS, PIMAGE_INFO, PUNICODE_STRING, UNICODE_STRING,
    ntddk::{PsRemoveLoadImageNotifyRoutine, PsSetLoadImageNotifyRoutine},
};

/// Most headers that are read: a page, in which linkers put them.
const HEADER_BYTES: usize = 4096;
/// Most bytes of an export directory that are read.
const EXPORT_BYTES: usize = 1024 * 1024;
/// How closely the system's list is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// Which modules there are.
    List,
    /// Also at pages that have moved.
    Whole,
}

/// The registry.
pub(crate) struct Images(WaitLock<Modules>);

/// List and snapshot, for the holder of the lock.
pub(crate) struct Modules {
    known: Vec<Known>,
    snapshot: Vec<u8>,
    generation: u32,
    next_order: u32,
    /// Load callbacks are to be followed.
    watching: bool,
    /// Nothing is missing for want of memory or of an answer.
    complete: bool,
}

struct Known {
    name: Name,
    base: u64,
    size: u32,
    load_order: u32,
    /// 0 for what was there at the start.
    load_time: u64,
    /// Generation of the first snapshot with it.
    since: u32,
    /// Once set, it stays: who maps something at the address of a section that
    /// was discarded does not bring it back to life.
    initialized: bool,
    sections: Vec<Section>,
}

impl Images {
    /// An empty registry.
    pub(crate) fn new() -> Result<Self, Status> {
        Ok(Self(WaitLock::new(Modules {
            known: Vec::new(),
            snapshot: Vec::new(),
            generation: 0,
            next_order: 0,
            watching: false,
            complete: true,
        })?))
    }

    /// Waits for the lock.
    pub(crate) fn lock(&self) -> Guard<'_, Modules> {
        self.0.lock()
    }

    /// Fills the registry and begins to follow loads.
    pub(crate) fn begin(&self) -> Result<(), Failure> {
        {
            let mut modules = self.lock();
            modules.known.clear();
            modules.complete = true;
            modules.watching = true;
        }
        // Registered before the list is asked for, so that nothing falls between.
        // SAFETY: PASSIVE_LEVEL; removed in `end`, before the image goes.
        let status = unsafe { PsSetLoadImageNotifyRoutine(Some(on_load)) };
        if !NT_SUCCESS(status) {
            self.lock().watching = false;
            return Err(Failure::new(StartError::NoModules));
        }
        let list = SystemList::query();
        let filled = list
            .map(|list| self.lock().fill(&list))
            .is_ok_and(|full| full);
        if filled {
            Ok(())
        } else {
            self.end();
            Err(Failure::new(StartError::NoModules))
        }
    }

    /// Stops following loads. The registry stays as it is.
    pub(crate) fn end(&self) {
        // SAFETY: PASSIVE_LEVEL; registered by `begin`.
        let _ = unsafe { PsRemoveLoadImageNotifyRoutine(Some(on_load)) };
        self.lock().watching = false;
    }
}

impl Driver {
    /// Looks for modules that have gone, and at pages that have moved.
    pub(crate) fn refresh_images(&self, look: Look) {
        let asked = clock::now();
        let list = SystemList::query();
        let mut modules = self.images.lock();
        if !modules.watching {
            return;
        }
        let Ok(list) = list else {
            modules.complete = false;
            return;
        };
        let mut told = |change, module: &Known| self.tell(change, module);
        let changed = modules.merge(&list, asked, &mut told);
        if look == Look::Whole
            && let Some(machine) = &*self.machine.lock()
        {
            machine.refresh_memory();
        }
        if changed || look == Look::Whole {
            self.rebuild(&mut modules);
        }
    }

    /// Looks whether entry points have returned since the last look: their
    /// discarded sections are dead at once.
    pub(crate) fn look_at_entries(&self) {
        let mut modules = self.images.lock();
        if modules.watching && modules.notice_returned() {
            self.rebuild(&mut modules);
        }
    }

    fn image_loaded(&self, name: Name, base: u64, size: u32) {
        let mut modules = self.images.lock();
        if !modules.watching {
            return;
        }
        modules.next_order += 1;
        let mut module = Known {
            name,
            base,
            size,
            load_order: modules.next_order,
            load_time: clock::now(),
            since: 0,
            initialized: false,
            sections: Vec::new(),
        };
        module.read_sections();
        self.tell(Change::Loaded, &module);
        // What was there has gone, whether we noticed or not.
        let overlaps = |old: &Known| base < old.end() && old.base < module.end();
        for old in modules.known.extract_if(.., |old| overlaps(old)) {
            self.tell(Change::Unloaded, &old);
        }
        modules.add(module);
        self.rebuild(&mut modules);
    }

    fn tell(&self, change: Change, module: &Known) {
        let name = module.name.as_str();
        self.findings
            .image(change, clock::now(), name, module.base, module.size);
    }

    fn rebuild(&self, modules: &mut Modules) {
        if modules.rebuild() {
            self.publish(modules);
        }
    }

    /// Gives the snapshot to root mode, if that runs.
    pub(crate) fn publish(&self, modules: &mut Modules) {
        if let Some(machine) = &*self.machine.lock() {
            let taken = machine.publish(&modules.snapshot);
            modules.complete = modules.complete && taken;
        }
    }
}

/// The load callback: called after the image is mapped, before its entry point
/// runs, at PASSIVE_LEVEL; process 0 means a driver.
unsafe extern "C" fn on_load(path: PUNICODE_STRING, process: HANDLE, image: PIMAGE_INFO) {
    // SAFETY: the system's structure, live for this call.
    let image = unsafe { image.as_ref() };
    if let (true, Some(image), Some(driver)) = (process.is_null(), image, Driver::get()) {
        // SAFETY: null or the system's string, live for this call.
        let path = unsafe { path.as_ref() };
        let name = path.map_or_else(Name::unknown, Name::of_path);
        let size = u32::try_from(image.ImageSize).unwrap_or(u32::MAX);
        driver.image_loaded(name, image.ImageBase as u64, size);
    }
}

impl Modules {
    /// The snapshot, for root mode.
    pub(crate) fn snapshot(&self) -> &[u8] {
        &self.snapshot
    }

    /// The snapshot, read.
    pub(crate) fn view(&self) -> View<'_> {
        View::new(&self.snapshot).unwrap_or(View::EMPTY)
    }

    /// Whether every module is in it.
    pub(crate) fn complete(&self) -> bool {
        self.complete
    }

    /// The export nearest before an offset of the module at `base`.
    pub(crate) fn export(&self, base: u64, offset: u32) -> Option<ExportName> {
        let module = self.known.iter().find(|module| module.base == base)?;
        let headers = module.headers()?;
        let (rva, size) = Image::parse(&headers)?.exports?;
        let end = rva.checked_add(size).filter(|end| *end <= module.size)?;
        let bytes = ((end - rva) as usize).min(EXPORT_BYTES);
        let directory = memory::read(base.checked_add(rva.into())?, bytes)?;
        let (name, distance) = image::nearest_export(&directory, rva, offset)?;
        Some(ExportName::new(name, distance))
    }

    fn fill(&mut self, list: &SystemList) -> bool {
        // No module of the list is new in the sense of the timeline.
        self.merge(list, 0, &mut |_, _| {});
        let newest = self.known.iter().map(|module| module.load_order).max();
        for module in &mut self.known {
            module.load_time = 0;
            // Their entry points have returned long ago, whatever lies at the
            // address of their discarded sections now. Only the newest driver's
            // may be running at this moment.
            module.initialized |= Some(module.load_order) != newest;
        }
        self.rebuild();
        !self.snapshot.is_empty() && !self.known.is_empty()
    }

    /// Takes over what the system's list says. Modules that were loaded after it
    /// was asked for (`asked`) stay. Returns whether anything changed.
    fn merge(
        &mut self,
        list: &SystemList,
        asked: u64,
        told: &mut dyn FnMut(Change, &Known),
    ) -> bool {
        let entries = list.entries();
        let mut changed = false;
        let listed = |known: &Known| {
            let same = |entry: &Entry| entry.base == known.base && entry.size == known.size;
            entries.iter().any(same)
        };
        for gone in self
            .known
            .extract_if(.., |known| known.load_time <= asked && !listed(known))
        {
            told(Change::Unloaded, &gone);
            changed = true;
        }
        for entry in entries {
            let end = entry.base.saturating_add(entry.size.into());
            let present = |known: &Known| entry.base < known.end() && known.base < end;
            if entry.size == 0 || self.known.iter().any(present) {
                continue;
            }
            let mut module = Known {
                name: Name::of_bytes(entry.name()),
                base: entry.base,
                size: entry.size,
                load_order: entry.load_order.into(),
                load_time: asked,
                since: 0,
                initialized: false,
                sections: Vec::new(),
            };
            module.read_sections();
            told(Change::Loaded, &module);
            self.next_order = self.next_order.max(module.load_order);
            self.add(module);
            changed = true;
        }
        self.notice_returned() || changed
    }

    /// Whether an entry point has returned since the last look.
    fn notice_returned(&mut self) -> bool {
        let mut changed = false;
        for module in self.known.iter_mut().filter(|module| !module.initialized) {
            module.initialized = module.looks_initialized();
            changed |= module.initialized;
        }
        changed
    }

    fn add(&mut self, mut module: Known) {
        // The list is rebuilt with the next number.
        module.since = self.generation.wrapping_add(1);
        if self.known.try_reserve(1).is_ok() {
            self.known.push(module);
        } else {
            self.complete = false;
        }
    }

    /// Makes a new snapshot. Returns whether it says anything new.
    fn rebuild(&mut self) -> bool {
        // Built with the old number first, to see whether it differs.
        let Some(same) = self.build(self.generation) else {
            self.complete = false;
            return false;
        };
        if same == self.snapshot {
            return false;
        }
        drop(same);
        let Some(new) = self.build(self.generation.wrapping_add(1)) else {
            self.complete = false;
            return false;
        };
        self.generation = self.generation.wrapping_add(1);
        self.snapshot = new;
        true
    }

    fn build(&mut self, generation: u32) -> Option<Vec<u8>> {
        let mut builder = Builder::new(generation);
        for module in &self.known {
            let spec = ModuleSpec {
                name: module.name.as_str(),
                base: module.base,
                size: module.size,
                load_order: module.load_order,
                load_time: module.load_time,
                since: module.since,
                initialized: module.initialized,
            };
            let sections = module.sections.iter().copied();
            let added = builder.module(&spec, sections, |va| {
                physical_address(va).map(|address| address >> 12)
            });
            if added.is_err() {
                self.complete = false;
            }
        }
        builder.finish().ok()
    }
}

impl Known {
    fn end(&self) -> u64 {
        self.base.saturating_add(self.size.into())
    }

    fn headers(&self) -> Option<Vec<u8>> {
        memory::read(self.base, HEADER_BYTES.min(self.size as usize))
    }

    /// Reads the section table; a module without one that can be read has no
    /// sections, so that its code is foreign.
    fn read_sections(&mut self) {
        let headers = self.headers().unwrap_or_default();
        for section in image::sections(&headers).into_iter().flatten() {
            if self.sections.try_reserve(1).is_ok() {
                self.sections.push(section);
            }
        }
        self.initialized = self.looks_initialized();
    }

    /// The loader frees discardable code when the entry point has returned.
    fn looks_initialized(&self) -> bool {
        let mut code = self
            .sections
            .iter()
            .filter(|section| section.executable() && section.discardable());
        !code.any(|section| physical_address(self.base + u64::from(section.rva)).is_some())
    }
}

/// A file name in UTF-8, cut to what a finding holds.
struct Name {
    bytes: [u8; detector::registry::MODULE_NAME_MAX],
    length: usize,
}

impl Name {
    const fn empty() -> Self {
        Self {
            bytes: [0; detector::registry::MODULE_NAME_MAX],
            length: 0,
        }
    }

    fn unknown() -> Self {
        Self::of_bytes(b"?")
    }

    /// The last part of a path.
    fn of_path(path: &UNICODE_STRING) -> Self {
        let units = usize::from(path.Length / 2);
        if path.Buffer.is_null() || units == 0 {
            return Self::unknown();
        }
        // SAFETY: the string's own length.
        let units = unsafe { core::slice::from_raw_parts(path.Buffer, units) };
        let mut name = Self::empty();
        for character in char::decode_utf16(units.iter().copied()) {
            match character {
                Ok('\\') => name = Self::empty(),
                Ok(character) => name.push(character),
                Err(_) => name.push(char::REPLACEMENT_CHARACTER),
            }
        }
        name
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let mut name = Self::empty();
        for chunk in bytes.utf8_chunks() {
            chunk.valid().chars().for_each(|c| name.push(c));
            if !chunk.invalid().is_empty() {
                name.push(char::REPLACEMENT_CHARACTER);
            }
        }
        name
    }

    fn push(&mut self, character: char) {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        if room.len() >= character.len_utf8() {
            self.length += character.encode_utf8(room).len();
        }
    }

    fn as_str(&self) -> &str {
        let used = self.bytes.get(..self.length).unwrap_or(&[]);
        core::str::from_utf8(used).unwrap_or("?")
    }
}
