//! Finding another module and its sections, by the system's own list and the
//! headers in memory. For specimens that attack one. PASSIVE_LEVEL.

#![allow(dead_code, reason = "each specimen uses what it needs")]

use wdk_standin::wdk_sys::{
    NT_SUCCESS, NTSTATUS, POOL_FLAG_NON_PAGED, PULONG, PVOID, ULONG,
    ntddk::{ExAllocatePool2, ExFreePoolWithTag},
};

use crate::harness::TAG;

#[cfg_attr(
    windows,
    link(name = "ntoskrnl.exe", kind = "raw-dylib", modifiers = "+verbatim")
)]
unsafe extern "C" {
    fn ZwQuerySystemInformation(
        class: ULONG,
        information: PVOID,
        length: ULONG,
        returned: PULONG,
    ) -> NTSTATUS;
}

/// `SystemModuleInformation`.
const MODULE_INFORMATION: ULONG = 11;
/// Bytes asked for: some 200 modules.
const BYTES: usize = 64 * 1024;
/// Bytes of `RTL_PROCESS_MODULE_INFORMATION`.
const ENTRY: usize = 296;

/// A loaded module.
#[derive(Clone, Copy)]
pub(crate) struct Module {
    base: u64,
}

/// A section of a module, as its header says.
#[derive(Clone, Copy)]
pub(crate) struct Section {
    /// First address.
    pub(crate) start: u64,
    /// Bytes in memory.
    pub(crate) bytes: usize,
}

fn read<T: Copy>(address: u64) -> T {
    // SAFETY: callers stay within headers that the loader keeps mapped, or within
    // a block of their own.
    unsafe { (address as *const T).read_unaligned() }
}

/// The module of this file name, compared without regard to case.
pub(crate) fn find(name: &[u8]) -> Option<Module> {
    // SAFETY: IRQL <= DISPATCH_LEVEL; the result is checked.
    let block = unsafe { ExAllocatePool2(POOL_FLAG_NON_PAGED, BYTES as u64, TAG) };
    if block.is_null() {
        return None;
    }
    let mut returned = 0;
    // SAFETY: PASSIVE_LEVEL; the block is that long.
    let status = unsafe {
        ZwQuerySystemInformation(
            MODULE_INFORMATION,
            block,
            u32::try_from(BYTES).unwrap_or(0),
            &raw mut returned,
        )
    };
    let mut found = None;
    if NT_SUCCESS(status) {
        let count: u32 = read(block as u64);
        for number in 0..count as usize {
            let entry = block as u64 + 8 + (number * ENTRY) as u64;
            let at: u16 = read(entry + 38);
            let path: [u8; 256] = read(entry + 40);
            let file = path.get(usize::from(at)..).unwrap_or_default();
            if file.len() > name.len()
                && file[..name.len()].eq_ignore_ascii_case(name)
                && file[name.len()] == 0
            {
                found = Some(Module {
                    base: read(entry + 16),
                });
            }
        }
    }
    // SAFETY: allocated above with this tag.
    unsafe { ExFreePoolWithTag(block, TAG) };
    found
}

impl Module {
    /// Address of the PE signature.
    fn header(self) -> u64 {
        self.base + u64::from(read::<u32>(self.base + 0x3C))
    }

    /// The entry point, which runs once.
    pub(crate) fn entry(self) -> u64 {
        self.base + u64::from(read::<u32>(self.header() + 0x28))
    }

    /// The section of this name.
    pub(crate) fn section(self, name: [u8; 8]) -> Option<Section> {
        let header = self.header();
        let count: u16 = read(header + 6);
        let optional: u16 = read(header + 20);
        let table = header + 24 + u64::from(optional);
        (0..u64::from(count))
            .map(|number| table + 40 * number)
            .find(|&row| read::<[u8; 8]>(row) == name)
            .map(|row| Section {
                start: self.base + u64::from(read::<u32>(row + 12)),
                bytes: read::<u32>(row + 8) as usize,
            })
    }
}
