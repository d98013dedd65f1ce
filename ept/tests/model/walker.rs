//! The processor's walk, written from the manuals' bit tables and not with the
//! crate's decoder: from a root address through raw entries to a page.

use ept::addr::{Gpa, Hpa};
use ept::entry::Access;
use ept::table::Table;

/// Memory that holds tables: contiguous chunks by physical address.
pub(crate) struct Memory<'a> {
    chunks: Vec<(Hpa, &'a [Table])>,
}

impl<'a> Memory<'a> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// Adds tables at `base`.
    pub(crate) fn lend(&mut self, base: Hpa, tables: &'a [Table]) {
        self.chunks.push((base, tables));
    }

    /// Adds `count` zeroed tables at `base`. Leaked: a test's tables live as
    /// long as the process.
    pub(crate) fn add(&mut self, base: u64, count: usize) -> (Hpa, &'static [Table]) {
        let tables: &'static [Table] = Vec::leak((0..count).map(|_| Table::new()).collect());
        self.lend(Hpa::new(base), tables);
        (Hpa::new(base), tables)
    }

    fn entry(&self, table: u64, index: usize) -> u64 {
        for (base, tables) in &self.chunks {
            let end = base.as_u64() + 4096 * tables.len() as u64;
            if (base.as_u64()..end).contains(&table) {
                let number = usize::try_from((table - base.as_u64()) / 4096).unwrap();
                return tables[number].load(index);
            }
        }
        panic!("the walk left the tables: {table:#x}");
    }
}

impl Memory<'_> {
    /// The tables on the way from `root` to the leaf for `gpa`, each with the
    /// lowest address bit that chose it.
    pub(crate) fn path(&self, root: Hpa, gpa: u64) -> Vec<(u32, u64)> {
        let mut table = root.as_u64();
        let mut found = Vec::new();
        for shift in [39_u32, 30, 21] {
            let raw = self.entry(table, usize::try_from(gpa >> shift & 0x1ff).unwrap());
            if raw & 0x407 == 0 || raw & 0x80 != 0 {
                break;
            }
            table = raw & 0x000f_ffff_ffff_f000;
            found.push((shift, table));
        }
        found
    }

    /// Goes on with a walk in `table`, which was reached by the address bits from
    /// `shift` on. All rights until there.
    pub(crate) fn walk_on(&self, table: u64, shift: u32, gpa: u64) -> Option<Translation> {
        walk_from(self, table, shift - 9, Gpa::new(gpa), true, 52)
    }
}

/// A translation as the processor would cache it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    /// First guest-physical address of the page.
    pub(crate) base: u64,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// First address of the frame.
    pub(crate) frame: u64,
    pub(crate) rights: Access,
    pub(crate) memory_type: u64,
}

/// Walks EPT entries. `None` where the access would be a violation for want of
/// any right; panics on what the processor would call a misconfiguration.
pub(crate) fn walk_ept(
    memory: &Memory<'_>,
    root: Hpa,
    gpa: Gpa,
    mbec: bool,
    phys_bits: u32,
) -> Option<Translation> {
    walk_from(memory, root.as_u64(), 39, gpa, mbec, phys_bits)
}

/// Walks on in `table`, whose entries are chosen by nine bits from `first` on.
fn walk_from(
    memory: &Memory<'_>,
    table: u64,
    first: u32,
    gpa: Gpa,
    mbec: bool,
    phys_bits: u32,
) -> Option<Translation> {
    let address = gpa.as_u64();
    let mut table = table;
    let mut rights = Access::all();
    for shift in [39_u32, 30, 21, 12] {
        if shift > first {
            continue;
        }
        let raw = memory.entry(table, usize::try_from(address >> shift & 0x1ff).unwrap());
        let user_bit = raw & 0x400 != 0;
        if raw.trailing_zeros() >= 3 && !(mbec && user_bit) {
            return None;
        }
        assert_eq!(raw & 1, 1, "{raw:#x}: a right without read");
        assert_eq!(
            raw & 0x000f_ffff_ffff_f000 & (u64::MAX << phys_bits),
            0,
            "{raw:#x}: address too wide"
        );
        let mut here = Access::READ;
        here.set(Access::WRITE, raw & 2 != 0);
        here.set(Access::EXEC_KERNEL, raw & 4 != 0);
        here.set(
            Access::EXEC_USER,
            if mbec { user_bit } else { raw & 4 != 0 },
        );
        rights &= here;
        let large = raw & 0x80 != 0;
        if shift == 12 || (large && shift < 39) {
            let bytes = 1_u64 << shift;
            let frame = raw & 0x000f_ffff_ffff_f000;
            assert_eq!(frame & (bytes - 1), 0, "{raw:#x}: frame not aligned");
            let memory_type = raw >> 3 & 7;
            assert!(![2, 3, 7].contains(&memory_type), "{raw:#x}");
            return Some(Translation {
                base: address & !(bytes - 1),
                bytes,
                frame,
                rights,
                memory_type,
            });
        }
        assert_eq!(raw & 0xf8, 0, "{raw:#x}: reserved bits of a table entry");
        table = raw & 0x000f_ffff_ffff_f000;
    }
    None
}
