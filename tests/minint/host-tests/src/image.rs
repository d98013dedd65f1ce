//! The loader's steps on a small native image that is built here, byte by byte:
//! headers, a code section, a data section with imports, exports and relocations.

use crate::pe::{BindError, Export, Exports, Image, ImageError, Symbol, checksum};

const NT: usize = 0x40;
const NT_OFFSET: u32 = 0x40;
const OPTIONAL: usize = NT + 24;
const SECTIONS: usize = OPTIONAL + 240;
const BASE: u64 = 0x1_4000_0000;
const TEXT: u32 = 0x1000;
const DATA: u32 = 0x2000;
const CHECKSUM: usize = OPTIONAL + 64;

/// Offsets in the data section.
const POINTER: u32 = 0x00;
const DESCRIPTOR: u32 = 0x10;
const SLOTS: u32 = 0x40;
const LOOKUP: u32 = 0x60;
const HINT_NAME: u32 = 0x80;
const LIBRARY: u32 = 0xA0;
const EXPORTS: u32 = 0xC0;
const RELOCATIONS: u32 = 0x180;

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put32(file: &mut [u8], at: usize, value: u32) {
    put(file, at, &value.to_le_bytes());
}

fn data(offset: u32) -> usize {
    0x600 + offset as usize
}

fn section(file: &mut [u8], index: usize, name: [u8; 8], rva: u32, raw: u32, flags: u32) {
    let at = SECTIONS + index * 40;
    put(file, at, &name);
    put32(file, at + 8, 0x200);
    put32(file, at + 12, rva);
    put32(file, at + 16, 0x200);
    put32(file, at + 20, raw);
    put32(file, at + 36, flags);
}

fn directory(file: &mut [u8], index: usize, rva: u32, size: u32) {
    put32(file, OPTIONAL + 112 + index * 8, rva);
    put32(file, OPTIONAL + 116 + index * 8, size);
}

fn headers(file: &mut [u8]) {
    put(file, 0, b"MZ");
    put32(file, 0x3C, NT_OFFSET);
    put(file, NT, b"PE\0\0");
    put(file, NT + 4, &0x8664u16.to_le_bytes());
    put(file, NT + 6, &2u16.to_le_bytes());
    put(file, NT + 20, &240u16.to_le_bytes());
    put(file, NT + 22, &0x22u16.to_le_bytes());
    put(file, OPTIONAL, &0x20Bu16.to_le_bytes());
    put32(file, OPTIONAL + 16, TEXT);
    put(file, OPTIONAL + 24, &BASE.to_le_bytes());
    put32(file, OPTIONAL + 32, 0x1000);
    put32(file, OPTIONAL + 36, 0x200);
    put32(file, OPTIONAL + 56, 0x3000);
    put32(file, OPTIONAL + 60, 0x400);
    put(file, OPTIONAL + 68, &1u16.to_le_bytes());
    put32(file, OPTIONAL + 108, 16);
}

fn imports(file: &mut [u8]) {
    directory(file, 1, DATA + DESCRIPTOR, 40);
    put32(file, data(DESCRIPTOR), DATA + LOOKUP);
    put32(file, data(DESCRIPTOR) + 12, DATA + LIBRARY);
    put32(file, data(DESCRIPTOR) + 16, DATA + SLOTS);
    put32(file, data(LOOKUP), DATA + HINT_NAME);
    put(
        file,
        data(LOOKUP) + 8,
        &(0x8000_0000_0000_0007u64).to_le_bytes(),
    );
    put(file, data(HINT_NAME), b"\0\0DbgPrint\0");
    put(file, data(LIBRARY), b"ntoskrnl.exe\0");
}

fn exports(file: &mut [u8]) {
    const FUNCTIONS: u32 = EXPORTS + 40;
    const NAMES: u32 = FUNCTIONS + 8;
    const ORDINALS: u32 = NAMES + 8;
    const TEXTS: u32 = ORDINALS + 8;
    directory(file, 0, DATA + EXPORTS, 0xA0);
    put32(file, data(EXPORTS) + 16, 1);
    put32(file, data(EXPORTS) + 20, 2);
    put32(file, data(EXPORTS) + 24, 2);
    put32(file, data(EXPORTS) + 28, DATA + FUNCTIONS);
    put32(file, data(EXPORTS) + 32, DATA + NAMES);
    put32(file, data(EXPORTS) + 36, DATA + ORDINALS);
    put32(file, data(FUNCTIONS), TEXT + 4);
    put32(file, data(FUNCTIONS) + 4, DATA + TEXTS + 16);
    put32(file, data(NAMES), DATA + TEXTS);
    put32(file, data(NAMES) + 4, DATA + TEXTS + 8);
    put(file, data(ORDINALS), &[0, 0, 1, 0]);
    put(file, data(TEXTS), b"Alpha\0\0\0Beta\0\0\0\0HAL.Other\0");
}

/// A good file.
fn file() -> Vec<u8> {
    let mut file = vec![0u8; 0x800];
    headers(&mut file);
    section(&mut file, 0, *b".text\0\0\0", TEXT, 0x400, 0x6000_0020);
    section(&mut file, 1, *b".data\0\0\0", DATA, 0x600, 0xC000_0040);
    put(&mut file, 0x400, &[0x90, 0x90, 0xC3]);
    put(&mut file, data(POINTER), &(BASE + 0x1004).to_le_bytes());
    imports(&mut file);
    exports(&mut file);
    directory(&mut file, 5, DATA + RELOCATIONS, 12);
    put32(&mut file, data(RELOCATIONS), DATA);
    put32(&mut file, data(RELOCATIONS) + 4, 12);
    put(&mut file, data(RELOCATIONS) + 8, &0xA000u16.to_le_bytes());
    seal(&mut file);
    file
}

fn seal(file: &mut [u8]) {
    let sum = checksum(file, CHECKSUM);
    put32(file, CHECKSUM, sum);
}

fn refused(change: impl FnOnce(&mut [u8])) -> Option<ImageError> {
    let mut file = file();
    change(&mut file);
    seal(&mut file);
    Image::parse(&file).err()
}

#[test]
fn a_good_image_is_laid_out_relocated_and_bound() {
    let file = file();
    let image = Image::parse(&file).unwrap();
    let mut memory = vec![0u8; image.size() as usize];
    image.lay_out(&mut memory);
    assert_eq!(memory[TEXT as usize..][..3], [0x90, 0x90, 0xC3]);
    let base = 0xFFFF_F805_5000_0000;
    image.relocate(&mut memory, base).unwrap();
    assert_eq!(memory[DATA as usize..][..8], (base + 0x1004).to_le_bytes());
    let mut wanted = Vec::new();
    image
        .bind(&mut memory, |library, symbol| {
            wanted.push((library.to_vec(), format!("{symbol:?}")));
            Some(wanted.len() as u64)
        })
        .unwrap();
    assert_eq!(wanted.len(), 2);
    assert_eq!(wanted[0].0, b"ntoskrnl.exe");
    assert!(wanted[1].1.contains("Ordinal(7)"));
    let slots = (DATA + SLOTS) as usize;
    assert_eq!(
        memory[slots..slots + 16],
        [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn an_import_that_nobody_has_is_named() {
    let file = file();
    let image = Image::parse(&file).unwrap();
    let mut memory = vec![0u8; image.size() as usize];
    image.lay_out(&mut memory);
    let Err(BindError::Unresolved(missing)) = image.bind(&mut memory, |_, _| None) else {
        panic!("bound");
    };
    assert_eq!(missing.library, b"ntoskrnl.exe");
    assert_eq!(missing.symbol, Symbol::Name(b"DbgPrint"));
}

#[test]
fn exports_are_found_by_name_and_ordinal() {
    let file = file();
    let image = Image::parse(&file).unwrap();
    let mut memory = vec![0u8; image.size() as usize];
    image.lay_out(&mut memory);
    let exports = Exports::of(&memory).unwrap();
    assert_eq!(
        exports.find(Symbol::Name(b"Alpha")),
        Some(Export::Rva(TEXT + 4))
    );
    assert_eq!(
        exports.find(Symbol::Ordinal(1)),
        Some(Export::Rva(TEXT + 4))
    );
    let forward = Export::Forward(b"HAL", Symbol::Name(b"Other"));
    assert_eq!(exports.find(Symbol::Name(b"Beta")), Some(forward));
    assert_eq!(exports.find(Symbol::Name(b"Gamma")), None);
    assert_eq!(exports.find(Symbol::Ordinal(3)), None);
}

#[test]
fn each_check_refuses_what_it_is_for() {
    assert_eq!(refused(|_| {}), None);
    assert_eq!(
        refused(|file| file[NT + 4] = 0x4C),
        Some(ImageError::WrongMachine)
    );
    assert_eq!(
        refused(|file| file[OPTIONAL + 68] = 2),
        Some(ImageError::NotNative)
    );
    let alignment = refused(|file| put32(file, OPTIONAL + 32, 0x200));
    assert_eq!(alignment, Some(ImageError::SectionAlignment));
    let outside = refused(|file| put32(file, SECTIONS + 8, 0x9000));
    assert_eq!(outside, Some(ImageError::SectionBounds));
    let overlap = refused(|file| put32(file, SECTIONS + 40 + 12, TEXT));
    assert_eq!(overlap, Some(ImageError::SectionBounds));
    let raw = refused(|file| put32(file, SECTIONS + 20, 0x700));
    assert_eq!(raw, Some(ImageError::SectionBounds));
    let mut damaged = file();
    damaged[0x401] ^= 1;
    assert_eq!(Image::parse(&damaged).err(), Some(ImageError::Checksum));
}
