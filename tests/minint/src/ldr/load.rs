//! Loading and unloading of one image.
//!
//! PASSIVE_LEVEL, one at a time: a gate (a synchronization event) is held while an
//! image is mapped, bound and entered, and while one is removed, but not while
//! the driver's own code runs.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use wdk_standin::wdk_sys::{NTSTATUS, UNICODE_STRING};

use super::module::{self, Module, Section};
use super::pe::{BindError, Exports, Image, ImageError, PAGE_SIZE, Symbol};
use super::{export, pe};
use crate::ex::event::Gate;
use crate::hal::{boot, instr};
use crate::mm::image::{Rights, discard, protect, release as release_pages, reserve};
use crate::rtl::status::{
    STATUS_DLL_NOT_FOUND, STATUS_DRIVER_ENTRYPOINT_NOT_FOUND, STATUS_DRIVER_ORDINAL_NOT_FOUND,
    STATUS_IMAGE_ALREADY_LOADED, STATUS_IMAGE_CHECKSUM_MISMATCH, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_IMAGE_FORMAT, STATUS_OBJECT_NAME_NOT_FOUND,
};
use crate::rtl::unicode::Owned;

/// Why an image was not loaded.
#[derive(Clone, Debug)]
pub(crate) enum LoadError {
    /// No such file in the boot image.
    NoFile(String),
    /// It is loaded already.
    Loaded(String),
    /// The file is no driver.
    Bad(String, ImageError),
    /// A library that it imports from is not there.
    NoLibrary {
        /// The driver.
        driver: String,
        /// The library.
        library: String,
    },
    /// Imports that no library has.
    Unresolved {
        /// The driver.
        driver: String,
        /// `function of library`, each.
        missing: Vec<String>,
        /// All of them were ordinals.
        ordinals: bool,
    },
    /// A library's `DllInitialize` failed.
    Library(String, NTSTATUS),
    /// Out of memory or of module slots.
    NoMemory(String),
}

impl LoadError {
    /// The status that the service's start returns.
    pub(crate) fn status(&self) -> NTSTATUS {
        match self {
            Self::NoFile(_) => STATUS_OBJECT_NAME_NOT_FOUND,
            Self::Loaded(_) => STATUS_IMAGE_ALREADY_LOADED,
            Self::Bad(_, ImageError::Checksum) => STATUS_IMAGE_CHECKSUM_MISMATCH,
            Self::Bad(..) => STATUS_INVALID_IMAGE_FORMAT,
            Self::NoLibrary { .. } => STATUS_DLL_NOT_FOUND,
            Self::Unresolved { ordinals: true, .. } => STATUS_DRIVER_ORDINAL_NOT_FOUND,
            Self::Unresolved { .. } => STATUS_DRIVER_ENTRYPOINT_NOT_FOUND,
            Self::Library(_, status) => *status,
            Self::NoMemory(_) => STATUS_INSUFFICIENT_RESOURCES,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFile(name) => write!(f, "{name}: no such file in the boot image"),
            Self::Loaded(name) => write!(f, "{name}: already loaded"),
            Self::Bad(name, error) => {
                write!(f, "{name}: not a driver that can be loaded ({error:?})")
            }
            Self::NoLibrary { driver, library } => {
                write!(
                    f,
                    "{driver}: imports from {library}, which is not in the boot image"
                )
            }
            Self::Unresolved {
                driver, missing, ..
            } => {
                write!(f, "{driver}: unresolved imports: {}", missing.join(", "))
            }
            Self::Library(name, status) => {
                write!(f, "{name}: DllInitialize returned {status:#010x}")
            }
            Self::NoMemory(name) => write!(f, "{name}: out of memory for its image"),
        }
    }
}

/// One image is mapped or removed at a time.
static GATE: Gate = Gate::new();

/// Depth of libraries that import from libraries.
const DEEPEST: u32 = 8;

/// Loads a driver file: maps, relocates, binds, tells the notify routines. Its
/// entry point has not run when this returns.
///
/// # Errors
/// [`LoadError`]; nothing stays behind.
pub(crate) fn load(file: &str) -> Result<Module, LoadError> {
    if module::find(file).is_some() {
        return Err(LoadError::Loaded(file.to_string()));
    }
    load_at(file, DEEPEST)
}

fn load_at(file: &str, depth: u32) -> Result<Module, LoadError> {
    let bytes = boot::file(file).ok_or_else(|| LoadError::NoFile(file.to_string()))?;
    let bad = |error| LoadError::Bad(file.to_string(), error);
    let image = Image::parse(bytes).map_err(bad)?;
    let imports = match load_libraries(file, &image, depth) {
        Ok(imports) => imports,
        Err((held, error)) => {
            held.into_iter().for_each(release);
            return Err(error);
        }
    };
    let entered = GATE.hold(|| map(file, &image, &imports));
    match entered {
        Ok(module) => {
            log!(
                "ldr: {} at {:#x}, {} bytes, entry {:#x}",
                module.name,
                module.base,
                module.size,
                module.entry
            );
            super::notify::image_loaded(&module.path, module.base, module.size);
            Ok(module)
        }
        Err(error) => {
            imports.into_iter().for_each(release);
            Err(error)
        }
    }
}

type Held = Vec<usize>;

fn load_libraries(file: &str, image: &Image<'_>, depth: u32) -> Result<Held, (Held, LoadError)> {
    let mut wanted = Vec::new();
    let names = image.libraries(|name| wanted.push(String::from_utf8_lossy(name).into_owned()));
    let mut held = Vec::new();
    if let Err(error) = names {
        return Err((held, LoadError::Bad(file.to_string(), error)));
    }
    for library in wanted
        .into_iter()
        .filter(|library| !export::is_kernel(library))
    {
        match hold_library(file, library, depth) {
            Ok(base) => held.push(base),
            Err(error) => return Err((held, error)),
        }
    }
    Ok(held)
}

/// Takes a reference on a library, loading and initializing it first if needed.
fn hold_library(file: &str, library: String, depth: u32) -> Result<usize, LoadError> {
    if let Some(module) = module::find(&library) {
        let _ = module::change(module.base, |module| module.references += 1);
        return Ok(module.base);
    }
    if depth == 0 || boot::file(&library).is_none() {
        return Err(LoadError::NoLibrary {
            driver: file.to_string(),
            library,
        });
    }
    let module = load_at(&library, depth - 1)?;
    match call_library(&module, b"DllInitialize") {
        Some(status) if status < 0 => {
            release(module.base);
            Err(LoadError::Library(library, status))
        }
        _ => {
            discard_init(module.base);
            Ok(module.base)
        }
    }
}

/// Calls an export driver's `DllInitialize` or `DllUnload`, if it has one.
fn call_library(module: &Module, name: &[u8]) -> Option<NTSTATUS> {
    let exports = Exports::of(module::image(module.base, module.size))?;
    let pe::Export::Rva(rva) = exports.find(Symbol::Name(name))? else {
        return None;
    };
    let stem = module
        .name
        .rsplit_once('.')
        .map_or(module.name.as_str(), |(stem, _)| stem);
    let path = Owned::new(&crate::cm::service_key(stem));
    let mut descriptor = path.descriptor();
    let routine = module.base + rva as usize;
    // SAFETY: the documented prototype of both: one pointer argument at most, an
    // NTSTATUS result.
    let routine: unsafe extern "C" fn(*mut UNICODE_STRING) -> NTSTATUS =
        unsafe { core::mem::transmute(routine) };
    // SAFETY: an export of a bound image, at PASSIVE_LEVEL.
    Some(unsafe { routine(&raw mut descriptor) })
}

fn map(file: &str, image: &Image<'_>, imports: &[usize]) -> Result<Module, LoadError> {
    let size = image.size() as usize;
    let no_memory = || LoadError::NoMemory(file.to_string());
    let pages = reserve(size).ok_or_else(no_memory)?;
    let result = fill(file, image, imports, pages, size)
        .and_then(|module| module::enter(module).ok_or_else(no_memory));
    if result.is_err() {
        release_pages(pages);
    }
    result
}

fn fill(
    file: &str,
    image: &Image<'_>,
    imports: &[usize],
    pages: *mut u8,
    size: usize,
) -> Result<Module, LoadError> {
    let base = pages.expose_provenance();
    // SAFETY: `size` bytes that were just reserved for this image alone.
    let memory = unsafe { core::slice::from_raw_parts_mut(pages, size) };
    image.lay_out(memory);
    let bad = |error| LoadError::Bad(file.to_string(), error);
    image.relocate(memory, base as u64).map_err(bad)?;
    bind(file, image, memory)?;
    if let Some(at) = pe::security_cookie(memory, base as u64) {
        // "The cookie is initialized to a pseudo-random value"; its top 16 bits
        // stay zero on x64.
        let cookie = (instr::rdtsc() ^ base as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16 | 1;
        memory[at..at + 8].copy_from_slice(&cookie.to_le_bytes());
    }
    let mut sections = Vec::new();
    protect(
        pages,
        image.header_size().div_ceil(PAGE_SIZE) as usize * PAGE_SIZE as usize,
        Rights::ReadOnly,
    );
    for section in image.sections() {
        protect(
            pages.wrapping_add(section.rva as usize),
            (section.pages() * PAGE_SIZE) as usize,
            rights(file, &section),
        );
        sections.push(Section {
            name: section.name,
            rva: section.rva,
            size: section.size,
            rights: section.rights,
            discarded: false,
        });
    }
    Ok(Module {
        number: 0,
        name: file.to_string(),
        path: "\\SystemRoot\\System32\\drivers\\".to_string() + file,
        base,
        size,
        entry: if image.entry() == 0 {
            0
        } else {
            base + image.entry() as usize
        },
        sections,
        imports: imports.to_vec(),
        references: 1,
        entry_address: 0,
    })
}

fn rights(file: &str, section: &pe::Section<'_>) -> Rights {
    match (section.rights.write, section.rights.execute) {
        (true, true) => {
            log!(
                "ldr: {file}: section {} is writable and executable",
                core::str::from_utf8(&section.name)
                    .unwrap_or("?")
                    .trim_end_matches('\0')
            );
            Rights::ReadWriteExecute
        }
        (true, false) => Rights::ReadWrite,
        (false, true) => Rights::ReadExecute,
        (false, false) => Rights::ReadOnly,
    }
}

fn bind(file: &str, image: &Image<'_>, memory: &mut [u8]) -> Result<(), LoadError> {
    let mut missing = Vec::new();
    let mut ordinals = true;
    let bound = image.bind(memory, |library, symbol| {
        let name = String::from_utf8_lossy(library).into_owned();
        // A missing one gets 0 for now: all of them are to be named.
        Some(export::resolve(&name, symbol).unwrap_or_else(|| {
            missing.push(match symbol {
                Symbol::Name(function) => {
                    ordinals = false;
                    alloc::format!("{} of {name}", String::from_utf8_lossy(function))
                }
                Symbol::Ordinal(ordinal) => alloc::format!("#{ordinal} of {name}"),
            });
            0
        }))
    });
    if !missing.is_empty() {
        for one in &missing {
            log!("ldr: {file}: no export {one}");
        }
        return Err(LoadError::Unresolved {
            driver: file.to_string(),
            missing,
            ordinals,
        });
    }
    match bound {
        Ok(()) => Ok(()),
        Err(BindError::Malformed | BindError::Unresolved(_)) => {
            Err(LoadError::Bad(file.to_string(), ImageError::Imports))
        }
    }
}

/// Frees the discardable sections of a module whose entry point has returned.
pub(crate) fn discard_init(base: usize) {
    let gone = module::change(base, |module| {
        let init = module
            .sections
            .iter_mut()
            .filter(|section| section.rights.discardable && !section.discarded);
        init.map(|section| {
            section.discarded = true;
            (section.rva, section.size)
        })
        .collect::<Vec<_>>()
    });
    for (rva, size) in gone.unwrap_or_default() {
        let start = core::ptr::with_exposed_provenance_mut::<u8>(base + rva as usize);
        discard(start, (size.div_ceil(PAGE_SIZE) * PAGE_SIZE) as usize);
    }
}

/// Drops a reference to a module; the last one calls a library's `DllUnload` and
/// removes the image, with those that it imported from.
pub(crate) fn release(base: usize) {
    let left = module::change(base, |module| {
        module.references -= 1;
        module.references
    });
    let Some(module) = module::find_base(base) else {
        return;
    };
    if left != Some(0) {
        return;
    }
    let _ = call_library(&module, b"DllUnload");
    crate::verifier::unloaded(&module);
    GATE.hold(|| {
        module::remove(base);
        release_pages(core::ptr::with_exposed_provenance_mut(base));
    });
    log!("ldr: {} unloaded", module.name);
    module.imports.into_iter().for_each(release);
}
