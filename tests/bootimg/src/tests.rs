//! The whole image, read back as the processor will read it.

use super::*;
use crate::tables::translate;

/// A PE32+ image with a `.text`, a `.data` and one relocation in `.data` that
/// points to the start of `.text`.
fn kernel(text_flags: u32) -> Vec<u8> {
    let mut file = vec![0u8; 0x800];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3C, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x84, &0x8664u16.to_le_bytes());
    put(0x86, &3u16.to_le_bytes());
    put(0x94, &0xF0u16.to_le_bytes());
    let optional = 0x98;
    put(optional, &0x20Bu16.to_le_bytes());
    put(optional + 16, &0x1010u32.to_le_bytes()); // entry
    put(optional + 24, &0x1_4000_0000u64.to_le_bytes());
    put(optional + 32, &0x1000u32.to_le_bytes());
    put(optional + 36, &0x200u32.to_le_bytes());
    put(optional + 56, &0x4000u32.to_le_bytes());
    put(optional + 60, &0x200u32.to_le_bytes());
    put(optional + 108, &16u32.to_le_bytes());
    put(
        optional + 112 + 5 * 8,
        &[0x3000u32.to_le_bytes(), 12u32.to_le_bytes()].concat(),
    );
    let sections = optional + 0xF0;
    for (number, (name, size, address, raw, flags)) in [
        (b".text\0\0\0", 0x20u32, 0x1000u32, 0x200u32, text_flags),
        (b".data\0\0\0", 0x900, 0x2000, 0x400, 0xC000_0040),
        (b".reloc\0\0", 12, 0x3000, 0x600, 0x4200_0040),
    ]
    .into_iter()
    .enumerate()
    {
        let at = sections + number * 40;
        put(at, name);
        put(at + 8, &size.to_le_bytes());
        put(at + 12, &address.to_le_bytes());
        put(at + 16, &0x200u32.to_le_bytes());
        put(at + 20, &raw.to_le_bytes());
        put(at + 36, &flags.to_le_bytes());
    }
    put(0x200, b"code");
    put(0x408, &0x1_4000_1000u64.to_le_bytes());
    put(
        0x600,
        &[0x2000u32.to_le_bytes(), 12u32.to_le_bytes()].concat(),
    );
    put(0x608, &(0xA008u16).to_le_bytes());
    file
}

struct Machine(Vec<u8>);

impl Machine {
    fn word(&self, physical: u64) -> u64 {
        let at = usize::try_from(physical - IMAGE_BASE).expect("in the image");
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    fn walk(&self, address: u64) -> Option<(u64, u64)> {
        translate(|at| self.word(at), self.word(IMAGE_BASE + 8), address)
    }

    fn read(&self, physical: u64, length: u64) -> &[u8] {
        let at = usize::try_from(physical - IMAGE_BASE).expect("in the image");
        &self.0[at..at + usize::try_from(length).expect("small")]
    }
}

fn built() -> Machine {
    let files = vec![
        ("a.sys".to_owned(), vec![7; 5000]),
        ("b".to_owned(), Vec::new()),
    ];
    let spec = Spec {
        kernel: &kernel(0x6000_0020),
        files,
        cmdline: "tick=5 x".to_owned(),
    };
    Machine(build(&spec).expect("builds").image)
}

#[test]
fn the_block_leads_to_kernel_command_line_and_files() {
    let machine = built();
    assert_eq!(machine.read(IMAGE_BASE, 8), b"MININTBT");
    assert_eq!(machine.word(IMAGE_BASE + 16), KERNEL_BASE + 0x1010);
    assert_eq!(
        machine.word(IMAGE_BASE + 40),
        1 | 2 << 32,
        "version 1, two files"
    );
    let line = machine.read(
        machine.word(IMAGE_BASE + 96),
        machine.word(IMAGE_BASE + 104),
    );
    assert_eq!(line, b"tick=5 x");
    let row = machine.word(IMAGE_BASE + 112);
    assert_eq!(
        machine.read(machine.word(row), machine.word(row + 8)),
        b"a.sys"
    );
    assert_eq!(machine.word(row + 16) % PAGE, 0);
    assert_eq!(
        machine.read(machine.word(row + 16), machine.word(row + 24)),
        [7; 5000]
    );
    assert_eq!(machine.word(row + 32 + 24), 0);
    assert_eq!(
        machine.word(IMAGE_BASE + 80) + machine.0.len() as u64,
        machine.word(IMAGE_BASE + 88)
    );
}

#[test]
fn pages_have_the_rights_of_their_sections() {
    let machine = built();
    let rights = |address| {
        let (_, entry) = machine.walk(address).expect("mapped");
        assert_eq!(entry >> 2 & 1, 0, "supervisor only");
        (entry >> 1 & 1 == 1, entry >> 63 == 0)
    };
    assert_eq!(rights(KERNEL_BASE), (false, false), "headers");
    assert_eq!(rights(KERNEL_BASE + 0x1000), (false, true), ".text");
    assert_eq!(rights(KERNEL_BASE + 0x2000), (true, false), ".data");
    assert_eq!(rights(KERNEL_BASE + 0x3000), (false, false), ".reloc");
    assert_eq!(rights(DIRECT_MAP + 0x1234_5000), (true, false));
    assert_eq!(machine.walk(KERNEL_BASE + 0x4000), None);
    assert_eq!(machine.walk(DIRECT_MAP + 0xA_0000), None, "video memory");
    assert_eq!(machine.walk(DIRECT_MAP), None, "the null page");
    let (stack, _) = machine
        .walk(machine.word(IMAGE_BASE + 24) - 8)
        .expect("the stack is mapped");
    assert!(stack >= IMAGE_BASE + PAGE);
}

#[test]
fn the_kernel_is_relocated_to_where_it_is_mapped() {
    let machine = built();
    let (text, _) = machine.walk(KERNEL_BASE + 0x1000).expect("mapped");
    assert_eq!(machine.read(text, 4), b"code");
    let (pointer, _) = machine.walk(KERNEL_BASE + 0x2008).expect("mapped");
    assert_eq!(machine.word(pointer), KERNEL_BASE + 0x1000);
    let (base, _) = machine.walk(KERNEL_BASE + 0x80 + 24 + 24).expect("mapped");
    assert_eq!(machine.word(base), KERNEL_BASE, "the header's ImageBase");
}

#[test]
fn a_writable_and_executable_section_is_refused() {
    let spec = Spec {
        kernel: &kernel(0xE000_0020),
        files: Vec::new(),
        cmdline: String::new(),
    };
    let error = build(&spec).expect_err("refused");
    assert!(
        format!("{error:#}").contains(".text is writable and executable"),
        "{error:#}"
    );
    let spec = Spec {
        kernel: b"MZ nothing",
        files: Vec::new(),
        cmdline: String::new(),
    };
    assert!(build(&spec).is_err());
}
