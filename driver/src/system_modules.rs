//! The system's own list of loaded drivers.
//!
//! `ZwQuerySystemInformation(SystemModuleInformation)` is documented for user
//! mode as `NtQuerySystemInformation` and in no driver header, so it is declared
//! here. PASSIVE_LEVEL, holding no lock: the system takes its loader's locks.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::status::Status;
use crate::wdk_crates::wdk_sys::{
    NT_SUCCESS, NTSTATUS, PULONG, PVOID, STATUS_INFO_LENGTH_MISMATCH, ULONG,
};

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

/// More than any system has drivers: what asks for more is not believed.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// `RTL_PROCESS_MODULE_INFORMATION` on x64.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Entry {
    section: u64,
    mapped_base: u64,
    /// First virtual address.
    pub(crate) base: u64,
    /// Bytes.
    pub(crate) size: u32,
    flags: u32,
    /// Position in the order of loading.
    pub(crate) load_order: u16,
    init_order: u16,
    load_count: u16,
    name_at: u16,
    path: [u8; 256],
}

const _: () = assert!(size_of::<Entry>() == 296);

impl Entry {
    /// The file's name without its directory.
    pub(crate) fn name(&self) -> &[u8] {
        let name = self.path.get(usize::from(self.name_at)..).unwrap_or(&[]);
        let end = name.iter().position(|byte| *byte == 0);
        name.get(..end.unwrap_or(name.len())).unwrap_or(&[])
    }
}

/// The list at one moment.
pub(crate) struct List {
    /// Eight-byte units, for the alignment of the entries.
    units: Vec<u64>,
    bytes: usize,
}

impl List {
    /// Asks the system. It may grow between two questions, so a few are asked.
    pub(crate) fn query() -> Result<Self, Status> {
        let mut units: Vec<u64> = Vec::new();
        let mut wanted: u32 = 0;
        for _ in 0..8 {
            let room = units.len() * 8;
            let mut returned: ULONG = 0;
            let buffer = units.as_mut_ptr();
            // SAFETY: the buffer is ours and `room` bytes long.
            let status = unsafe {
                ZwQuerySystemInformation(
                    MODULE_INFORMATION,
                    buffer.cast(),
                    u32::try_from(room).unwrap_or(0),
                    &raw mut returned,
                )
            };
            if NT_SUCCESS(status) {
                let bytes = match returned as usize {
                    0 => room,
                    returned => returned.min(room),
                };
                return Ok(Self { units, bytes });
            }
            if status != STATUS_INFO_LENGTH_MISMATCH {
                return Err(Status::from_nt(status));
            }
            // A little more, for drivers that come meanwhile.
            wanted = wanted.max(returned).saturating_add(16 * 296);
            let wanted = (wanted as usize).div_ceil(8);
            if wanted * 8 > MOST_BYTES {
                break;
            }
            units.clear();
            units
                .try_reserve_exact(wanted)
                .map_err(|_| Status::NO_MEMORY)?;
            units.resize(wanted, 0);
        }
        Err(Status::from_nt(STATUS_INFO_LENGTH_MISMATCH))
    }

    /// The drivers, as many as really lie in the buffer.
    pub(crate) fn entries(&self) -> &[Entry] {
        let bytes = zerocopy::IntoBytes::as_bytes(self.units.as_slice());
        let Some(bytes) = bytes.get(..self.bytes) else {
            return &[];
        };
        // The count is a ULONG; the entries begin at the next eight bytes.
        let Some((count, rest)) = bytes.split_first_chunk::<8>() else {
            return &[];
        };
        let [a, b, c, d, ..] = *count;
        let count = u32::from_le_bytes([a, b, c, d]) as usize;
        let count = count.min(rest.len() / size_of::<Entry>());
        match <[Entry]>::ref_from_prefix_with_elems(rest, count) {
            Ok((entries, _)) => entries,
            Err(_) => &[],
        }
    }
}
