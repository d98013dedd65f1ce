//! `PsLoadedModuleList`: the system's own list of modules.
//!
//! Entries have the layout of `KLDR_DATA_TABLE_ENTRY` on x64, because drivers
//! reach them through `DRIVER_OBJECT.DriverSection`. The loader links and unlinks
//! under its lock; `SystemModuleInformation` reads this list and nothing else, so
//! what is unlinked from it is gone from there, as on Windows.

use alloc::boxed::Box;
use alloc::string::String;
use core::cell::UnsafeCell;
use core::ffi::c_void;

use wdk_standin::wdk_sys::{LIST_ENTRY, UNICODE_STRING};

use crate::ob::argument::own;
use crate::rtl::unicode::Owned;

/// `KLDR_DATA_TABLE_ENTRY`.
#[expect(clippy::struct_field_names, reason = "Microsoft's names")]
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) links: LIST_ENTRY,
    exception_table: *mut c_void,
    exception_table_size: u32,
    gp_value: *mut c_void,
    non_paged_debug_info: *mut c_void,
    pub(crate) base: *mut c_void,
    pub(crate) entry_point: *mut c_void,
    pub(crate) size: u32,
    pub(crate) full_name: UNICODE_STRING,
    pub(crate) base_name: UNICODE_STRING,
    flags: u32,
    pub(crate) load_count: u16,
    signature: u16,
    section_pointer: *mut c_void,
    checksum: u32,
    coverage_section_size: u32,
    coverage_section: *mut c_void,
    loaded_imports: *mut c_void,
    spare: *mut c_void,
    size_not_rounded: u32,
    time_date_stamp: u32,
    names: [Owned; 2],
}

const _: () = assert!(core::mem::offset_of!(Entry, base) == 0x30);
const _: () = assert!(core::mem::offset_of!(Entry, full_name) == 0x48);
const _: () = assert!(core::mem::offset_of!(Entry, base_name) == 0x58);
const _: () = assert!(core::mem::offset_of!(Entry, section_pointer) == 0x70);

/// The exported list head.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct Head(UnsafeCell<LIST_ENTRY>);

// SAFETY: written under the loader's lock only.
unsafe impl Sync for Head {}

/// Head of the list of loaded modules, `ntoskrnl.exe` first.
#[unsafe(no_mangle)]
pub(crate) static PsLoadedModuleList: Head = Head(UnsafeCell::new(LIST_ENTRY {
    Flink: core::ptr::null_mut(),
    Blink: core::ptr::null_mut(),
}));

/// Makes the list empty. Once, at start.
pub(super) fn initialize() {
    let head = PsLoadedModuleList.0.get();
    *own!(head) = LIST_ENTRY {
        Flink: head,
        Blink: head,
    };
}

/// Makes an entry and links it at the end.
pub(super) fn link(base: usize, size: u32, entry_point: usize, path: &str) -> *mut Entry {
    let name = path.rsplit('\\').next().unwrap_or(path);
    let names = [Owned::new(path), Owned::new(name)];
    let head = PsLoadedModuleList.0.get();
    let last = own!(head).Blink;
    let entry = Box::new(Entry {
        links: LIST_ENTRY {
            Flink: head,
            Blink: last,
        },
        exception_table: core::ptr::null_mut(),
        exception_table_size: 0,
        gp_value: core::ptr::null_mut(),
        non_paged_debug_info: core::ptr::null_mut(),
        base: core::ptr::with_exposed_provenance_mut(base),
        entry_point: core::ptr::with_exposed_provenance_mut(entry_point),
        size,
        full_name: names[0].descriptor(),
        base_name: names[1].descriptor(),
        flags: 0x0900_4000,
        load_count: 1,
        signature: 0,
        section_pointer: core::ptr::null_mut(),
        checksum: 0,
        coverage_section_size: 0,
        coverage_section: core::ptr::null_mut(),
        loaded_imports: core::ptr::null_mut(),
        spare: core::ptr::null_mut(),
        size_not_rounded: size,
        time_date_stamp: 0,
        names,
    });
    let entry = Box::into_raw(entry);
    own!(last).Flink = entry.cast();
    own!(head).Blink = entry.cast();
    entry
}

/// Unlinks an entry, if it still is linked, and frees it.
pub(super) fn unlink(entry: *mut Entry) {
    let links = own!(entry).links;
    // A rootkit may have unlinked it already; then its neighbours point past it.
    if own!(links.Blink).Flink == entry.cast() {
        own!(links.Blink).Flink = links.Flink;
        own!(links.Flink).Blink = links.Blink;
    }
    // SAFETY: made by `link`, and linked no more.
    drop(unsafe { Box::from_raw(entry) });
}

/// One entry as `SystemModuleInformation` shows it.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) base: usize,
    pub(super) size: u32,
    pub(super) load_count: u16,
    pub(super) path: String,
}

/// Walks the list; under the loader's lock.
pub(super) fn walk(visit: &mut dyn FnMut(Shown)) {
    const LONGEST: usize = 1024;
    let head = PsLoadedModuleList.0.get();
    let mut at = own!(head).Flink;
    for _ in 0..LONGEST {
        if at == head {
            return;
        }
        let entry = &*own!(at.cast::<Entry>());
        visit(Shown {
            base: entry.base.addr(),
            size: entry.size,
            load_count: entry.load_count,
            path: crate::rtl::unicode::text(&raw const entry.full_name, "PsLoadedModuleList"),
        });
        at = entry.links.Flink;
    }
}
