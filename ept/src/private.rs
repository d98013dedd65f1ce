//! A core's private path for one instruction.
//!
//! An instruction that writes the page it executes from needs both rights at
//! once and would fault for ever. For exactly that instruction its core gets
//! tables of its own: copies of the tables on the way to the page, with the
//! rights that the instruction needs in the one leaf, and everything else as in
//! the shared tables. No other core ever walks them.
//!
//! **Owner and locking.** The seven tables belong to one core. That core builds
//! the path, holding the transition lock, uses it as its root for one step, and
//! returns to the shared root. Because the tables are used again with other
//! content, the core invalidates the translations of this root (a single-context
//! INVEPT, an ASID flush) after each build.
//!
//! **Revocations reach it by rebuilding.** The copies do not follow the shared
//! tables. A core that is asked to invalidate while it is on its private path
//! builds it anew if [`PrivatePath::is_stale`] before it acknowledges; otherwise
//! it would go on with a right that was revoked for all.
//!
//! **Cost.** The first build copies four tables. A core that keeps its path and
//! steps in the same 2 MB region again has only the few entries refreshed that
//! have changed since, as long as the space remembers them: fifty instructions
//! by [`PrivatePath::aim`] for one page, several hundred by
//! [`PrivatePath::build`] for more.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{Gpa, Hpa, PageSize, table_index};
use crate::entry::{Access, NestedEntry};
use crate::slot::Slot;
use crate::space::{Entry, Leaf, Space};
use crate::table::Table;

/// Tables of a path: a root, and two each of the three lower levels.
pub const TABLES: usize = 7;

/// The pages do not fit into the tables of the path; the step cannot be done
/// this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// The private tables of one core.
#[derive(Debug)]
pub struct PrivatePath<'a> {
    tables: [(Hpa, &'a Table); TABLES],
    generation: AtomicU64,
    /// The first page of the 2 MB region that all of `given` lie in, or
    /// [`NOTHING`].
    region: AtomicU64,
    /// The page that has rights of its own, if it is one, or [`NOTHING`].
    single: AtomicU64,
    /// The pages that have rights of their own now, or [`NOTHING`].
    given: [AtomicU64; MAX_GIVEN],
}

/// Pages that a path remembers; after a step over more it is built from scratch.
const MAX_GIVEN: usize = 4;
/// No page's address.
const NOTHING: u64 = u64::MAX;
/// log2 of the size of a region, which one table of leaves maps.
const REGION_SHIFT: u32 = PageSize::Size2M.bytes().trailing_zeros();

impl<'a> PrivatePath<'a> {
    /// A path in these tables, each given with its physical address.
    #[must_use]
    pub const fn new(tables: [(Hpa, &'a Table); TABLES]) -> Self {
        Self {
            tables,
            generation: AtomicU64::new(NOTHING),
            region: AtomicU64::new(NOTHING),
            single: AtomicU64::new(NOTHING),
            given: [const { AtomicU64::new(NOTHING) }; MAX_GIVEN],
        }
    }

    /// A path in the first seven tables of a physically contiguous chunk;
    /// `None` if it is shorter or not page-aligned.
    #[must_use]
    pub fn in_chunk(base: Hpa, chunk: &'a [Table]) -> Option<Self> {
        let first = chunk.first()?;
        if !base.is_aligned(PageSize::Size4K) {
            return None;
        }
        let mut tables = [(base, first); TABLES];
        for (index, slot) in tables.iter_mut().enumerate() {
            let offset = (index as u64).wrapping_mul(4096);
            *slot = (
                Hpa::new(base.as_u64().wrapping_add(offset)),
                chunk.get(index)?,
            );
        }
        Some(Self::new(tables))
    }

    /// Physical address of the private root.
    #[must_use]
    pub fn root(&self) -> Hpa {
        self.tables[0].0
    }

    /// Whether the shared tables changed since the path was built.
    #[must_use]
    pub fn is_stale<F: NestedEntry>(&self, shared: &Space<'_, F>) -> bool {
        self.generation.load(Ordering::Relaxed) != shared.generation()
    }

    /// Copies the way to each of `pages` from the shared tables and gives its
    /// 4 KB leaf the given rights, both write and execute if so asked. A large
    /// leaf on the way is split here, privately; a page not mapped yet gets its
    /// identity leaf here. Returns the private root.
    ///
    /// # Errors
    /// [`NoRoom`] if the pages need more than [`TABLES`] tables, or lie beyond
    /// the reach of the tables; the path must not be used then.
    pub fn build<F: NestedEntry>(
        &self,
        shared: &Space<'_, F>,
        pages: &[(Gpa, Access)],
    ) -> Result<Hpa, NoRoom> {
        // Read first: a change during the copy leaves the path stale.
        let generation = shared.generation();
        let last = self.generation.swap(NOTHING, Ordering::Relaxed);
        if !self.refresh(shared, last, pages) {
            self.copy(shared, pages)?;
        }
        self.generation.store(generation, Ordering::Relaxed);
        Ok(self.root())
    }

    /// Gives `slot`'s page the rights `access` on this path, and takes back those
    /// given before: [`Self::build`] for one page in the region that the path
    /// served last, in a few dozen instructions. `None` when there is more to
    /// do; then it is [`Self::build`] that must be called. Returns the private
    /// root.
    #[must_use]
    #[inline]
    pub fn aim<F: NestedEntry>(&self, slot: &Slot<'_, 'a, F>, access: Access) -> Option<Hpa> {
        let (shared, theirs, page) = (slot.space(), slot.table(), slot.gpa());
        let last = Gpa::new(self.single.load(Ordering::Relaxed));
        if !same_region(page, last) {
            return None;
        }
        let own = self.leaf_table();
        let renew = |gpa: Gpa| {
            let index = table_index(gpa, 1);
            own.store(index, theirs.load(index));
        };
        let now = shared.changes_since(self.generation.load(Ordering::Relaxed), |note| {
            // Mostly it is this page that has changed, which is written below.
            if note == slot.note() {
                return true;
            }
            if same_region(note.page(), page) {
                renew(note.page());
            }
            note.level() == 1
        })?;
        if page != last {
            renew(last);
        }
        let raw = shared.format().with_rights(slot.raw(), access);
        own.store(table_index(page, 1), raw);
        self.single.store(page.as_u64(), Ordering::Relaxed);
        self.generation.store(now, Ordering::Relaxed);
        Some(self.root())
    }

    /// Builds the path from scratch.
    fn copy<F: NestedEntry>(
        &self,
        shared: &Space<'_, F>,
        pages: &[(Gpa, Access)],
    ) -> Result<(), NoRoom> {
        let [(_, root), lower @ ..] = &self.tables;
        root.copy_from(shared.root_table());
        let mut free = lower.iter();
        for &(gpa, access) in pages {
            if gpa >= shared.limit() {
                return Err(NoRoom);
            }
            let mut table: &Table = root;
            for level in [4, 3, 2] {
                let index = table_index(gpa, level);
                let entry = shared.decode(table.load(index), level, gpa);
                if let Entry::Table(hpa) = entry
                    && let Some((_, own)) = lower.iter().find(|(own, _)| *own == hpa)
                {
                    table = own;
                    continue;
                }
                let (hpa, child) = free.next().ok_or(NoRoom)?;
                match entry {
                    Entry::Absent => child.clear(),
                    Entry::Table(hpa) => child.copy_from(shared.pool().find(hpa).ok_or(NoRoom)?),
                    Entry::Leaf(whole) => {
                        shared.subdivide(child, &whole, gpa, level.wrapping_sub(1));
                    }
                }
                table.store(index, shared.format().table(*hpa));
                table = child;
            }
            give(shared, table, gpa, access);
        }
        self.remember(pages);
        Ok(())
    }

    /// Brings the path up to date, if it was built for the same 2 MB region at
    /// generation `last` and only 4 KB leaves have changed since. `false` if it
    /// must be built from scratch.
    fn refresh<F: NestedEntry>(
        &self,
        shared: &Space<'_, F>,
        last: u64,
        pages: &[(Gpa, Access)],
    ) -> bool {
        let region = self.region.load(Ordering::Relaxed);
        let inside = |gpa: Gpa| same_region(gpa, Gpa::new(region));
        if last == NOTHING || !pages.iter().all(|page| inside(page.0)) {
            return false;
        }
        let Some(theirs) = shared.leaf_table(Gpa::new(region)) else {
            return false;
        };
        let own = self.leaf_table();
        let renew = |gpa: Gpa| {
            let index = table_index(gpa, 1);
            own.store(index, theirs.load(index));
        };
        let known = shared.changes_since(last, |note| {
            if inside(note.page()) {
                renew(note.page());
            }
            note.level() == 1
        });
        if known.is_none() {
            return false;
        }
        for given in self.given.iter().chain([&self.single]) {
            let gpa = given.load(Ordering::Relaxed);
            if gpa != NOTHING {
                renew(Gpa::new(gpa));
            }
        }
        for &(gpa, access) in pages {
            give(shared, own, gpa, access);
        }
        self.remember(pages);
        true
    }

    /// The table of 4 KB leaves of a path that serves one region: root, two
    /// levels, leaves, in the order in which [`Self::copy`] takes them.
    fn leaf_table(&self) -> &'a Table {
        let [_, _, _, (_, table), ..] = self.tables;
        table
    }

    fn remember(&self, pages: &[(Gpa, Access)]) {
        let region = |gpa: Gpa| gpa.align_down(PageSize::Size2M).as_u64();
        let first = pages.first().map_or(NOTHING, |page| region(page.0));
        let one = pages.len() <= MAX_GIVEN && pages.iter().all(|page| region(page.0) == first);
        self.region
            .store(if one { first } else { NOTHING }, Ordering::Relaxed);
        let single = match pages {
            [(page, _)] => page.page_base().as_u64(),
            _ => NOTHING,
        };
        self.single.store(single, Ordering::Relaxed);
        for (index, given) in self.given.iter().enumerate() {
            let gpa = pages.get(index).map_or(NOTHING, |page| page.0.as_u64());
            given.store(gpa, Ordering::Relaxed);
        }
    }
}

/// Whether one table of leaves maps both.
#[inline]
const fn same_region(a: Gpa, b: Gpa) -> bool {
    (a.as_u64() ^ b.as_u64()) >> REGION_SHIFT == 0
}

/// Gives the 4 KB page at `gpa` rights of its own in `table`.
fn give<F: NestedEntry>(shared: &Space<'_, F>, table: &Table, gpa: Gpa, access: Access) {
    let index = table_index(gpa, 1);
    let leaf = match shared.decode(table.load(index), 1, gpa) {
        Entry::Leaf(leaf) => leaf,
        Entry::Absent | Entry::Table(_) => {
            let mt = shared.memory_type(gpa);
            shared.data_leaf(gpa, PageSize::Size4K, mt)
        }
    };
    table.store(index, shared.encode(&Leaf { access, ..leaf }));
}
