//! The table of loaded modules.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::list::{self, Entry};
use super::{pe, slots};
use crate::hal::boot;
use crate::ke::spinlock::SpinLock;

/// One section of a loaded module.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// Name, padded with zeros.
    pub(crate) name: [u8; 8],
    /// Offset from the base, in bytes.
    pub(crate) rva: u32,
    /// Size in memory, in bytes.
    pub(crate) size: u32,
    /// Rights of its pages.
    pub(crate) rights: pe::Rights,
    /// Its pages are gone.
    pub(crate) discarded: bool,
}

/// One loaded module.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    /// Owner number of its allocations; 0 is the kernel.
    pub(crate) number: u32,
    /// File name.
    pub(crate) name: String,
    /// Full path in the system's name space.
    pub(crate) path: String,
    /// First byte.
    pub(crate) base: usize,
    /// Bytes in memory.
    pub(crate) size: usize,
    /// Address of the entry point, 0 if there is none.
    pub(crate) entry: usize,
    /// Sections in the order of the file.
    pub(crate) sections: Vec<Section>,
    /// Bases of the modules it imports from, the kernel left out.
    pub(crate) imports: Vec<usize>,
    /// How many use it: its service, and each module that imports from it.
    pub(crate) references: u32,
    pub(super) entry_address: usize,
}

static MODULES: SpinLock<Vec<Module>> = SpinLock::new(Vec::new());

impl Module {
    /// Its `KLDR_DATA_TABLE_ENTRY`.
    pub(crate) fn list_entry(&self) -> *mut core::ffi::c_void {
        core::ptr::with_exposed_provenance_mut(self.entry_address)
    }
}

/// A copy of the table.
pub(crate) fn modules() -> Vec<Module> {
    MODULES.lock().clone()
}

/// A module by file name, without case.
pub(crate) fn find(name: &str) -> Option<Module> {
    MODULES
        .lock()
        .iter()
        .find(|module| module.name.eq_ignore_ascii_case(name))
        .cloned()
}

pub(super) fn find_base(base: usize) -> Option<Module> {
    MODULES
        .lock()
        .iter()
        .find(|module| module.base == base)
        .cloned()
}

/// Changes one module under the lock.
pub(super) fn change<R>(base: usize, f: impl FnOnce(&mut Module) -> R) -> Option<R> {
    MODULES
        .lock()
        .iter_mut()
        .find(|module| module.base == base)
        .map(f)
}

/// Runs `f` while the system's list cannot change.
pub(super) fn with_list(f: &mut dyn FnMut()) {
    let table = MODULES.lock();
    f();
    drop(table);
}

/// Enters a mapped module into the table, the list and the slots.
pub(super) fn enter(mut module: Module) -> Option<Module> {
    module.number = slots::enter(module.base, module.size, &module.name)?;
    let size = u32::try_from(module.size).ok()?;
    let mut table = MODULES.lock();
    let entry = list::link(module.base, size, module.entry, &module.path);
    module.entry_address = entry.expose_provenance();
    table.push(module.clone());
    Some(module)
}

/// Takes a module out of all three.
pub(super) fn remove(base: usize) {
    let mut table = MODULES.lock();
    let Some(at) = table.iter().position(|module| module.base == base) else {
        return;
    };
    let module = table.remove(at);
    list::unlink(module.list_entry().cast::<Entry>());
    drop(table);
    slots::leave(module.number);
}

/// The bytes of a loaded image. Discarded sections are holes: only headers and
/// directories may be read from it.
pub(crate) fn image<'a>(base: usize, size: usize) -> &'a [u8] {
    let start = core::ptr::with_exposed_provenance::<u8>(base);
    // SAFETY: a loaded image; the loader keeps it mapped while it is in the table.
    unsafe { core::slice::from_raw_parts(start, size) }
}

/// Sections of an image in memory, from its headers.
pub(super) fn sections_of(memory: &[u8]) -> Vec<Section> {
    use object::LittleEndian as LE;
    use object::pe as format;
    let Some(table) = pe::mapped_sections(memory) else {
        return Vec::new();
    };
    table
        .iter()
        .map(|header| {
            let flags = header.characteristics.get(LE);
            Section {
                name: header.name,
                rva: header.virtual_address.get(LE),
                size: header.virtual_size.get(LE),
                rights: pe::Rights {
                    write: flags.contains(format::IMAGE_SCN_MEM_WRITE),
                    execute: flags.contains(format::IMAGE_SCN_MEM_EXECUTE),
                    discardable: header.name.starts_with(b"INIT"),
                },
                discarded: false,
            }
        })
        .collect()
}

/// Enters the kernel itself and `HAL.dll`, and gives the pool its owner look-up.
/// PASSIVE_LEVEL, once.
pub(crate) fn start() {
    list::initialize();
    let (base, size) = (boot::kernel_base(), boot::kernel_size());
    let kernel = Module {
        number: 0,
        name: "ntoskrnl.exe".to_string(),
        path: "\\SystemRoot\\system32\\ntoskrnl.exe".to_string(),
        base,
        size,
        entry: 0,
        sections: sections_of(image(base, 4096)),
        imports: Vec::new(),
        references: 1,
        entry_address: 0,
    };
    // Nothing is in the table yet: there is room, and the kernel gets number 0.
    let _ = enter(kernel);
    super::hal_image::enter();
    crate::mm::pool::set_owner_lookup(slots::owner_of);
}

/// Marks the kernel's own INIT sections as gone.
pub(crate) fn kernel_init_discarded() {
    let _ = change(boot::kernel_base(), |kernel| {
        kernel
            .sections
            .iter_mut()
            .filter(|section| section.rights.discardable)
            .for_each(|section| section.discarded = true);
    });
}
