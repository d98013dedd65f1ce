//! The flat form of a registry snapshot.
//!
//! Layout: [`Header`], then the module, section, frame and page tables at the
//! offsets that it names. The frame table answers "what lies in this frame", the
//! page table "in which frame lies this page of a section". All records are unaligned little-endian plain data, so that a
//! snapshot may lie anywhere in memory and be moved by copying its bytes. Owned
//! by whoever holds the bytes; no record holds a pointer.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "HVDREG\0\x01", little-endian.
pub(super) const MAGIC: u64 = 0x0100_4745_5244_5648;
/// Changes whenever a record does.
pub(super) const VERSION: u32 = 2;

/// Room for a module's name.
pub(super) const NAME_ROOM: usize = 64;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: U64,
    pub(super) version: U32,
    pub(super) generation: U32,
    pub(super) byte_length: U32,
    pub(super) modules: U32,
    pub(super) sections: U32,
    pub(super) frames: U32,
    pub(super) modules_at: U32,
    pub(super) sections_at: U32,
    pub(super) frames_at: U32,
    pub(super) pages: U32,
    pub(super) pages_at: U32,
    pub(super) reserved: U32,
}

pub(super) const MODULE_INITIALIZED: u8 = 1;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ModuleRecord {
    pub(super) base: U64,
    pub(super) load_time: U64,
    pub(super) size: U32,
    pub(super) load_order: U32,
    pub(super) first_section: U32,
    /// Generation of the first snapshot with this module.
    pub(super) since: U32,
    pub(super) section_count: U16,
    pub(super) name_length: u8,
    pub(super) flags: u8,
    pub(super) name: [u8; NAME_ROOM],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct SectionRecord {
    pub(super) rva: U32,
    /// In whole pages: protection has no finer grain.
    pub(super) size: U32,
    /// As in the file (PE format, "Section Flags").
    pub(super) characteristics: U32,
    /// Index of its first page in the page table, all ones if it has none.
    pub(super) first_page: U32,
    pub(super) module: U16,
    pub(super) name_length: u8,
    pub(super) reserved: u8,
    pub(super) name: [u8; 8],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct FrameRecord {
    pub(super) pfn: U64,
    pub(super) rva: U32,
    pub(super) module: U16,
    pub(super) section: U16,
}

/// A section whose frames are not kept.
#[cfg(feature = "alloc")]
pub(super) const NO_PAGES: u32 = u32::MAX;
/// A page that was not resident.
pub(super) const NO_FRAME: u64 = u64::MAX;

/// An entry of the page table: a frame number or [`NO_FRAME`].
pub(super) type PageRecord = U64;

const _: () = assert!(size_of::<Header>() == 56);
const _: () = assert!(size_of::<ModuleRecord>() == 100);
const _: () = assert!(size_of::<SectionRecord>() == 28);
const _: () = assert!(size_of::<FrameRecord>() == 16);
