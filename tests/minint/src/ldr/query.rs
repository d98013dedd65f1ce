//! `ZwQuerySystemInformation` for the classes that drivers ask for.
//!
//! PASSIVE_LEVEL. The layouts are those of `RTL_PROCESS_MODULES` and
//! `RTL_PROCESS_MODULE_INFORMATION` (296 bytes on x64): class 11,
//! `SystemModuleInformation`, and of `SYSTEM_BASIC_INFORMATION`,
//! `SYSTEM_KERNEL_DEBUGGER_INFORMATION` and `SYSTEM_CODEINTEGRITY_INFORMATION`.

use alloc::vec::Vec;

use wdk_standin::wdk_sys::{NTSTATUS, PVOID, ULONG};

use super::list;
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::put;
use crate::rtl::status::{STATUS_INFO_LENGTH_MISMATCH, STATUS_INVALID_INFO_CLASS, STATUS_SUCCESS};

const SYSTEM_BASIC_INFORMATION: ULONG = 0;
const SYSTEM_MODULE_INFORMATION: ULONG = 11;
const SYSTEM_KERNEL_DEBUGGER_INFORMATION: ULONG = 35;
const SYSTEM_MODULE_INFORMATION_EX: ULONG = 77;
const SYSTEM_CODE_INTEGRITY_INFORMATION: ULONG = 103;

/// Bytes of `RTL_PROCESS_MODULE_INFORMATION`.
const RECORD: usize = 296;

fn name_offset(path: &str) -> u16 {
    path.rfind('\\')
        .and_then(|at| u16::try_from(at + 1).ok())
        .unwrap_or(0)
}

fn record(out: &mut Vec<u8>, index: u16, shown: &list::Shown) {
    let start = out.len();
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&(shown.base as u64).to_le_bytes());
    out.extend_from_slice(&shown.size.to_le_bytes());
    out.extend_from_slice(&0x0900_4000u32.to_le_bytes());
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&0u16.to_le_bytes());
    out.extend_from_slice(&shown.load_count.to_le_bytes());
    out.extend_from_slice(&name_offset(&shown.path).to_le_bytes());
    out.extend(shown.path.bytes().take(255));
    out.resize(start + RECORD, 0);
}

fn shown() -> Vec<list::Shown> {
    let mut all = Vec::new();
    super::module::with_list(&mut || list::walk(&mut |shown| all.push(shown)));
    all
}

fn modules() -> Vec<u8> {
    let all = shown();
    let mut out = Vec::with_capacity(8 + all.len() * RECORD);
    out.extend_from_slice(&u32::try_from(all.len()).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for (index, shown) in (0..).zip(&all) {
        record(&mut out, index, shown);
    }
    out
}

/// `RTL_PROCESS_MODULE_INFORMATION_EX`: an offset to the next record, the record,
/// checksum, time stamp, default base.
fn modules_ex() -> Vec<u8> {
    const EXTENDED: usize = 8 + RECORD + 16;
    let mut out = Vec::new();
    for (index, shown) in (0..).zip(&shown()) {
        out.extend_from_slice(&(EXTENDED as u16).to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        record(&mut out, index, shown);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&(shown.base as u64).to_le_bytes());
    }
    // The list ends with a zero offset.
    out.extend_from_slice(&[0; 8]);
    out
}

fn basic() -> Vec<u8> {
    let mut out = Vec::new();
    let pages = crate::machine::physical_pages();
    for value in [0u32, 156_250, 4096, pages, 1, pages, 65_536, 0] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    let cpus = crate::ke::cpu_count();
    for value in [0x1_0000u64, 0x7FFF_FFFE_FFFF, (1 << cpus) - 1] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    out.extend_from_slice(&u64::from(cpus).to_le_bytes());
    out
}

fn query(class: ULONG, buffer: PVOID, length: ULONG, needed: *mut ULONG, api: &str) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, api);
    let data = match class {
        SYSTEM_BASIC_INFORMATION => basic(),
        SYSTEM_MODULE_INFORMATION => modules(),
        SYSTEM_MODULE_INFORMATION_EX => modules_ex(),
        // Not enabled, not present.
        SYSTEM_KERNEL_DEBUGGER_INFORMATION => alloc::vec![0, 1],
        // Length, then CODEINTEGRITY_OPTION_ENABLED and TESTSIGN.
        SYSTEM_CODE_INTEGRITY_INFORMATION => alloc::vec![8, 0, 0, 0, 3, 0, 0, 0],
        _ => return STATUS_INVALID_INFO_CLASS,
    };
    if !needed.is_null() {
        put!(needed, u32::try_from(data.len()).unwrap_or(u32::MAX), api);
    }
    if (length as usize) < data.len() {
        return STATUS_INFO_LENGTH_MISMATCH;
    }
    crate::ob::argument::check(buffer.cast_const().cast::<u32>(), api);
    // SAFETY: checked to be a kernel address; the contract gives it `length` bytes.
    let target = unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), data.len()) };
    target.copy_from_slice(&data);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwQuerySystemInformation(
    class: ULONG,
    buffer: PVOID,
    length: ULONG,
    needed: *mut ULONG,
) -> NTSTATUS {
    query(class, buffer, length, needed, "ZwQuerySystemInformation")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn NtQuerySystemInformation(
    class: ULONG,
    buffer: PVOID,
    length: ULONG,
    needed: *mut ULONG,
) -> NTSTATUS {
    query(class, buffer, length, needed, "NtQuerySystemInformation")
}
