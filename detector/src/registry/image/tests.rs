//! A small image, and what is left of it when its bytes are hostile.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

const EXPORTS: u32 = 0x2000;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

/// Headers of a 64-bit image with three sections (PE format, offsets as there).
fn headers() -> Vec<u8> {
    const NT: usize = 0x80;
    const OPTIONAL: usize = NT + 24;
    const TABLE: usize = OPTIONAL + 240;
    let mut bytes = std::vec![0; 4096];
    put(&mut bytes, 0, b"MZ");
    put32(&mut bytes, 0x3c, 0x80);
    put(&mut bytes, NT, b"PE\0\0");
    put(&mut bytes, NT + 4, &0x8664_u16.to_le_bytes());
    put(&mut bytes, NT + 6, &3_u16.to_le_bytes());
    put32(&mut bytes, NT + 8, 0x1234_5678);
    put(&mut bytes, NT + 20, &240_u16.to_le_bytes());
    put(&mut bytes, OPTIONAL, &0x20b_u16.to_le_bytes());
    put32(&mut bytes, OPTIONAL + 16, 0x1010);
    put32(&mut bytes, OPTIONAL + 56, 0x4000);
    put32(&mut bytes, OPTIONAL + 64, 0xabcd);
    put32(&mut bytes, OPTIONAL + 108, 16);
    put32(&mut bytes, OPTIONAL + 112, EXPORTS);
    put32(&mut bytes, OPTIONAL + 116, 0x200);
    for (index, (name, rva, size, raw, flags)) in [
        (b".text\0\0\0", 0x1000, 0xf00, 0x1000, 0x6000_0020_u32),
        (b".edata\0\0", EXPORTS, 0x200, 0x200, 0x4000_0040),
        (b"INIT\0\0\0\0", 0x3000, 0, 0x600, 0x6200_0020),
    ]
    .into_iter()
    .enumerate()
    {
        let at = TABLE + 40 * index;
        put(&mut bytes, at, name);
        put32(&mut bytes, at + 8, size);
        put32(&mut bytes, at + 12, rva);
        put32(&mut bytes, at + 16, raw);
        put32(&mut bytes, at + 36, flags);
    }
    bytes
}

/// An export directory with Alpha at 0x1000, Beta at 0x1100, and Forward, which
/// points into the directory itself.
fn directory() -> Vec<u8> {
    let mut bytes = std::vec![0; 0x200];
    put32(&mut bytes, 16, 1);
    put32(&mut bytes, 20, 3);
    put32(&mut bytes, 24, 3);
    put32(&mut bytes, 28, EXPORTS + 0x40);
    put32(&mut bytes, 32, EXPORTS + 0x60);
    put32(&mut bytes, 36, EXPORTS + 0x80);
    let names: [(&[u8], u32); 3] = [
        (b"Alpha", 0x1000),
        (b"Beta", 0x1100),
        (b"Forward", EXPORTS + 0x100),
    ];
    for (index, (name, address)) in (0_u8..).zip(names) {
        let at = usize::from(index);
        put32(&mut bytes, 0x40 + 4 * at, address);
        put32(
            &mut bytes,
            0x60 + 4 * at,
            EXPORTS + 0xa0 + 16 * u32::from(index),
        );
        put(&mut bytes, 0x80 + 2 * at, &[index, 0]);
        put(&mut bytes, 0xa0 + 16 * at, name);
    }
    put(&mut bytes, 0x100, b"OTHER.Function");
    bytes
}

#[test]
fn headers_are_read() {
    let bytes = headers();
    let image = Image::parse(&bytes).unwrap();
    assert_eq!((image.size, image.entry), (0x4000, 0x1010));
    assert_eq!(
        (image.time_date_stamp, image.checksum),
        (0x1234_5678, 0xabcd)
    );
    assert_eq!(image.exports, Some((EXPORTS, 0x200)));
    for at in [0x80 + 24 + 112, 0x80 + 24 + 116] {
        let mut bytes = headers();
        put32(&mut bytes, at, 0);
        assert_eq!(Image::parse(&bytes).unwrap().exports, None, "{at:#x}");
    }
    let found: Vec<_> = sections(&bytes).unwrap().collect();
    assert_eq!(found.len(), 3);
    assert_eq!(
        (found[0].name(), found[0].rva, found[0].size),
        (&b".text"[..], 0x1000, 0xf00)
    );
    assert!(found[0].executable() && !found[0].writable() && !found[0].discardable());
    assert!(!found[1].executable());
    assert_eq!(
        found[2].size, 0x600,
        "a virtual size of 0 means the raw size"
    );
    assert!(found[2].executable() && found[2].discardable());
}

#[test]
fn headers_that_are_none_are_refused() {
    let good = headers();
    assert!(Image::parse(&[]).is_none());
    assert!(
        Image::parse(&good[..0x100]).is_none(),
        "the table is cut off"
    );
    for (at, value) in [(0, 0), (0x3c, 0xff), (0x80, 0), (0x98, 0x0b ^ 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(Image::parse(&bad).is_none(), "{at:#x}");
    }
    let mut many = good.clone();
    put(&mut many, 0x86, &u16::MAX.to_le_bytes());
    assert!(Image::parse(&many).is_none());
}

#[test]
fn the_nearest_export_before_an_address() {
    let directory = directory();
    let nearest = |rva| nearest_export(&directory, EXPORTS, rva);
    assert_eq!(nearest(0xfff), None);
    assert_eq!(nearest(0x1000), Some((&b"Alpha"[..], 0)));
    assert_eq!(nearest(0x10ff), Some((&b"Alpha"[..], 0xff)));
    assert_eq!(nearest(0x1104), Some((&b"Beta"[..], 4)));
    assert_eq!(
        nearest(0x3000),
        Some((&b"Beta"[..], 0x1f00)),
        "a forwarder is no code"
    );
}

#[test]
fn an_export_counts_by_its_address() {
    // The address of Forward: just behind the directory, none, the one of Beta.
    for (address, rva, expected) in [
        (EXPORTS + 0x200, 0x3000, (&b"Forward"[..], 0xe00)),
        (EXPORTS, 0x3000, (b"Beta", 0x1f00)),
        (0x1100, 0x1104, (b"Beta", 4)),
    ] {
        let mut directory = directory();
        put32(&mut directory, 0x48, address);
        let found = nearest_export(&directory, EXPORTS, rva);
        assert_eq!(found, Some(expected), "{address:#x}");
    }
    let mut directory = directory();
    put32(&mut directory, 0x48, 0);
    assert_eq!(nearest_export(&directory, EXPORTS, 0xfff), None);
}

proptest! {
    #[test]
    fn hostile_headers_never_panic(changes in prop::collection::vec((0..0x200_usize, any::<u8>()), 0..16), length in 0..4097_usize) {
        let mut bytes = headers();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Some(image) = Image::parse(&bytes[..length]) {
            prop_assert!(image.sections().count() <= 4096 / 40);
        }
    }

    #[test]
    fn hostile_export_directories_never_panic(
        changes in prop::collection::vec((0..0x200_usize, any::<u8>()), 0..16),
        length in 0..0x201_usize, at: u32, rva: u32,
    ) {
        let mut bytes = directory();
        for (at, value) in changes {
            bytes[at] = value;
        }
        for base in [EXPORTS, at] {
            if let Some((name, offset)) = nearest_export(&bytes[..length], base, rva) {
                prop_assert!(name.len() <= EXPORT_NAME_MAX && offset <= rva);
            }
        }
    }
}
