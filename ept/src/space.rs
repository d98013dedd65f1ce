//! The identity-mapped address space that all cores share.
//!
//! All of the physical address width can be reached: what is not mapped yet is
//! filled on the first violation with the largest leaf of one memory type.
//! Nothing large is ever executable by the kernel (the iTLB-multihit erratum,
//! CVE-2018-12207): rights are given to 4 KB leaves, and large leaves are split
//! from the pool, for good, when one page in them differs.
//!
//! **Owner and locking.** Root mode shares `&Space`; whoever calls a method that
//! changes something holds the transition lock. Reading ([`Space::lookup`],
//! [`Space::counts`](Space::count_pages)) needs no lock. All changes of an entry
//! go through one function, which exchanges it whole, keeps the page counts and
//! advances the generation by which private paths notice that they are stale.
//!
//! **Bounds.** A walk is four steps; a split writes 1,024 entries at most; a
//! fill or a retype visits each leaf of its range once.
//!
//! **Reach.** Four levels translate 48 bits. A wider physical address is
//! answered with [`MapError::OutOfReach`].
//!
//! **Break before make.** Replacing a large leaf by a table of smaller ones is
//! reported as [`Flush::Revoked`]. On processors with the erratum, user-mode
//! code may run from large leaves where user fetches are a right of their own:
//! there the caller first calls [`Space::vacate`], has that acknowledged, and
//! then splits.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{Gpa, Hpa, PAGE_BYTES, PageSize, REACH_BITS, table_index};
use crate::entry::{Access, Decoded, NestedEntry, Soft};
use crate::flush::Flush;
use crate::memtype::{MemoryType, MtrrState};
use crate::pool::Pool;
use crate::recent::Recent;
use crate::slot::Slot;
use crate::table::{ENTRIES, Table};
use crate::wx::PageState;

/// Level of the root table.
const ROOT_LEVEL: u8 = 4;
/// Tables that splits leave to lazy identity fills: a missing mapping cannot be
/// worked around, a missing split costs coverage only.
const FILL_RESERVE: usize = 16;

/// Changes that the journal remembers.
const JOURNAL: usize = 16;

/// A changed entry in the journal: page address and, below it, level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note(u64);

impl Note {
    /// The entry of level 1 for `page`.
    #[inline]
    pub(crate) const fn leaf(page: Gpa) -> Self {
        Self(page.page_base().as_u64() | 1)
    }

    /// The note as a number: bit 0 is set for level 1.
    #[inline]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) const fn page(self) -> Gpa {
        Gpa::new(self.0).page_base()
    }

    #[inline]
    pub(crate) const fn level(self) -> u8 {
        (self.0 & 7) as u8
    }
}

/// Why a mapping could not be changed. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The pool of tables is used up: a counted loss of coverage, see
    /// [`Space::exempt_whole`].
    PoolExhausted,
    /// The address is wider than the tables or the processor's addresses.
    OutOfReach,
    /// Write and kernel execution together, without [`PageState::Exempt`].
    WriteAndExecute,
}

/// A leaf, as found in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First guest-physical address that it maps.
    pub gpa: Gpa,
    /// First address of the frame.
    pub hpa: Hpa,
    /// Its size.
    pub size: PageSize,
    /// Rights.
    pub access: Access,
    /// Memory type.
    pub mt: MemoryType,
    /// The monitor's note.
    pub soft: Soft,
}

impl Leaf {
    /// Whether the guest sees another frame than the one it names.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.hpa != Hpa::identity(self.gpa)
    }
}

/// One changed leaf.
#[must_use = "the flush token must be carried out"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What the cores must do.
    pub flush: Flush,
    /// The leaf that mapped the address before.
    pub old: Leaf,
    /// The leaf that maps it now.
    pub new: Leaf,
}

/// The outcome of [`Space::retype`].
#[must_use = "the flush token must be carried out"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retyped {
    /// What the cores must do.
    pub flush: Flush,
    /// Large leaves that should have been split but for an exhausted pool; they
    /// were made uncacheable, which is slow and right.
    pub degraded: u64,
}

/// Mapped 4 KB pages by state (a large leaf counts as its pages; a hidden page
/// counts as hidden only), and tables by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// RW-.
    pub writable: u64,
    /// R-X.
    pub executable: u64,
    /// R--, held by a core.
    pub stepping: u64,
    /// RWX: loss of coverage.
    pub exempt: u64,
    /// Mapped to another frame than the one the guest names.
    pub hidden: u64,
    /// 2 MB regions that are mapped by 4 KB leaves.
    pub split_2m: u64,
    /// 1 GB regions that are mapped by smaller leaves.
    pub split_1g: u64,
}

#[derive(Debug, Default)]
struct Tally {
    by_state: [AtomicU64; 4],
    hidden: AtomicU64,
    tables: [AtomicU64; 2],
}

impl Tally {
    fn state(&self, state: PageState) -> u64 {
        self.by_state
            .get(usize::from(state.bits()))
            .map_or(0, |n| n.load(Ordering::Relaxed))
    }

    fn leaf(&self, leaf: &Leaf, add: bool) {
        let counter = if leaf.is_hidden() {
            Some(&self.hidden)
        } else {
            self.by_state.get(usize::from(leaf.soft.state.bits()))
        };
        if let Some(counter) = counter {
            let pages = leaf.size.pages();
            let change = if add { pages } else { pages.wrapping_neg() };
            bump(counter, change);
        }
    }

    /// A table of `level` was put in place.
    fn table(&self, level: u8) {
        if let Some(counter) = self.tables.get(usize::from(level).wrapping_sub(1)) {
            bump(counter, 1);
        }
    }

    /// A 4 KB page that is not hidden went from one state to another.
    #[inline]
    fn turned(&self, was: PageState, is: PageState) {
        let counter = |state: PageState| self.by_state.get(usize::from(state.bits()));
        if let (Some(was), Some(is)) = (counter(was), counter(is)) {
            bump(was, u64::MAX);
            bump(is, 1);
        }
    }
}

/// Adds `change`, wrapping. Whoever writes holds the transition lock, so no
/// locked instruction is needed.
#[inline]
fn bump(counter: &AtomicU64, change: u64) {
    let value = counter.load(Ordering::Relaxed).wrapping_add(change);
    counter.store(value, Ordering::Relaxed);
}

/// Where a walk ended: the entry that is absent or a leaf.
struct Found<'a> {
    gpa: Gpa,
    table: &'a Table,
    level: u8,
    index: usize,
    raw: u64,
    leaf: Option<Leaf>,
}

/// The shared nested tables, in the entry format `F`.
#[derive(Debug)]
pub struct Space<'a, F: NestedEntry> {
    format: F,
    pool: Pool<'a>,
    mtrr: &'a MtrrState,
    root: (Hpa, &'a Table),
    limit: u64,
    has_1g: bool,
    generation: AtomicU64,
    /// Where the last entries were changed: page address and, below it, level.
    journal: [AtomicU64; JOURNAL],
    recent: Recent,
    tally: Tally,
}

impl<'a, F: NestedEntry> Space<'a, F> {
    /// An empty space. `phys_bits` is the width of a physical address as the
    /// guest uses it (CPUID `8000_0008`, less the bits of memory-encryption
    /// keys); `has_1g` says that the nested tables may hold 1 GB leaves.
    ///
    /// # Errors
    /// [`MapError::PoolExhausted`] if there is no table for the root.
    pub fn new(
        format: F,
        pool: Pool<'a>,
        mtrr: &'a MtrrState,
        phys_bits: u8,
        has_1g: bool,
    ) -> Result<Self, MapError> {
        let root = pool.claim().ok_or(MapError::PoolExhausted)?;
        root.1.clear();
        Ok(Self {
            format,
            pool,
            mtrr,
            root,
            limit: 1 << phys_bits.clamp(32, REACH_BITS),
            has_1g,
            generation: AtomicU64::new(0),
            journal: [const { AtomicU64::new(0) }; JOURNAL],
            recent: Recent::new(),
            tally: Tally::default(),
        })
    }

    /// Physical address of the root table.
    #[must_use]
    pub fn root(&self) -> Hpa {
        self.root.0
    }

    /// The entry format.
    #[must_use]
    pub fn format(&self) -> &F {
        &self.format
    }

    /// The reserve of tables.
    #[must_use]
    pub fn pool(&self) -> &Pool<'a> {
        &self.pool
    }

    /// The first address that cannot be mapped.
    #[must_use]
    pub fn limit(&self) -> Gpa {
        Gpa::new(self.limit)
    }

    /// Advances with every changed entry, after the change is visible.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The rights of `state` in this format.
    #[must_use]
    pub fn rights(&self, state: PageState) -> Access {
        self.format.rights_of(state)
    }

    /// Bytes of all tables in use.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        (self.pool.used() as u64).wrapping_mul(PAGE_BYTES)
    }

    /// A handle on the 4 KB leaf that shows the guest the frame `gpa` names, for
    /// the exit path: a region seen before costs no walk. `None` sends the
    /// caller to [`Self::lookup`] and [`Self::set_state`], which know large
    /// leaves, missing mappings and hidden pages.
    #[must_use]
    #[inline]
    pub fn find(&self, gpa: Gpa) -> Option<Slot<'_, 'a, F>> {
        match self.recent.get(gpa).and_then(|at| self.pool.at(at)) {
            Some(table) => Slot::new(self, table, gpa),
            None => self.find_anew(gpa),
        }
    }

    #[cold]
    fn find_anew(&self, gpa: Gpa) -> Option<Slot<'_, 'a, F>> {
        match self.descend(gpa)? {
            (table, 1) => Slot::new(self, table, gpa),
            _ => None,
        }
    }

    /// The frame that the guest sees at `gpa`, whatever the size of its leaf;
    /// `None` where nothing is mapped yet. For root mode's reads of guest memory:
    /// nothing else of the leaf is looked at.
    #[must_use]
    #[inline]
    pub fn frame(&self, gpa: Gpa) -> Option<Hpa> {
        match self.recent.get(gpa).and_then(|at| self.pool.at(at)) {
            Some(table) => self.format.frame(table.load(table_index(gpa, 1)), 1, gpa),
            None => self.frame_anew(gpa),
        }
    }

    fn frame_anew(&self, gpa: Gpa) -> Option<Hpa> {
        let (table, level) = self.descend(gpa)?;
        let raw = table.load(table_index(gpa, level));
        self.format.frame(raw, level, gpa)
    }

    /// The last table on the way to `gpa`, with its level. One of 4 KB leaves is
    /// remembered.
    fn descend(&self, gpa: Gpa) -> Option<(&'a Table, u8)> {
        if gpa.as_u64() >= self.limit {
            return None;
        }
        let mut table = self.root.1;
        for level in [4, 3, 2] {
            let raw = table.load(table_index(gpa, level));
            let Some(hpa) = self.format.next_table(raw, level) else {
                return Some((table, level));
            };
            let at = self.pool.place(hpa)?;
            table = self.pool.at(at)?;
            if level == 2 {
                self.recent.put(gpa, at);
            }
        }
        Some((table, 1))
    }

    /// The leaf that maps `gpa`; `None` where nothing is mapped yet.
    #[must_use]
    pub fn lookup(&self, gpa: Gpa) -> Option<Leaf> {
        self.walk(gpa).ok()?.leaf
    }

    /// Makes sure that `gpa` is mapped: a missing entry is filled with the
    /// largest identity leaf of one memory type, writable and not executable by
    /// the kernel. Never asks for a flush.
    ///
    /// # Errors
    /// [`MapError::PoolExhausted`], [`MapError::OutOfReach`].
    pub fn ensure(&self, gpa: Gpa) -> Result<Leaf, MapError> {
        let slot = self.walk(gpa)?;
        if let Some(leaf) = slot.leaf {
            return Ok(leaf);
        }
        let leaf = self.largest_leaf(gpa);
        self.hang(&slot, &leaf, gpa, leaf.size, 0)
            .map(|_flush| leaf)
    }

    /// Maps every address of `range` that is not mapped yet, as
    /// [`Self::ensure`] does; leaves may reach beyond the ends of the range.
    ///
    /// # Errors
    /// [`MapError::PoolExhausted`], [`MapError::OutOfReach`]; what was filled
    /// until then stays.
    pub fn fill(&self, range: Range<Gpa>) -> Result<Flush, MapError> {
        let mut at = range.start.page_base().as_u64();
        let before = self.generation();
        while at < range.end.as_u64() {
            let leaf = self.ensure(Gpa::new(at))?;
            at = leaf.gpa.as_u64().wrapping_add(leaf.size.bytes());
        }
        Ok(if self.generation() == before {
            Flush::None
        } else {
            Flush::Relaxed
        })
    }

    /// Makes `gpa` mapped by a 4 KB leaf. The leaves that replace a large one
    /// keep its rights, type and note. All or nothing: the large leaf is
    /// replaced by one store, once the smaller ones are complete.
    ///
    /// # Errors
    /// [`MapError::PoolExhausted`], [`MapError::OutOfReach`].
    pub fn split(&self, gpa: Gpa) -> Result<Flush, MapError> {
        self.small_slot(gpa).map(|(_, flush)| flush)
    }

    /// Makes the leaf around `gpa` absent, as the first half of breaking before
    /// making. The next [`Self::split`] or [`Self::ensure`] maps it again, with
    /// the rights of data; a 4 KB leaf is left alone.
    pub fn vacate(&self, gpa: Gpa) -> Flush {
        match self.walk(gpa) {
            Ok(slot) if slot.level > 1 && slot.leaf.is_some() => self.replace(&slot, None),
            _ => Flush::None,
        }
    }

    /// Gives the 4 KB page at `gpa` these rights and this note, splitting and
    /// filling as needed; frame and type stay.
    ///
    /// # Errors
    /// [`MapError::PoolExhausted`], [`MapError::OutOfReach`],
    /// [`MapError::WriteAndExecute`].
    pub fn set_access(&self, gpa: Gpa, access: Access, soft: Soft) -> Result<Change, MapError> {
        if access.is_writable_and_executable() && soft.state != PageState::Exempt {
            return Err(MapError::WriteAndExecute);
        }
        self.change(gpa, |old| Leaf {
            access: access.legal(),
            soft,
            ..old
        })
    }

    /// Gives the 4 KB page at `gpa` the rights of `soft.state`; see
    /// [`Self::set_access`].
    ///
    /// # Errors
    /// [`MapError::PoolExhausted`], [`MapError::OutOfReach`].
    pub fn set_state(&self, gpa: Gpa, soft: Soft) -> Result<Change, MapError> {
        self.set_access(gpa, self.rights(soft.state), soft)
    }

    /// Shows the guest the frame `hpa` at the 4 KB page `gpa`. Hides the
    /// hypervisor's memory behind one dummy frame.
    ///
    /// # Errors
    /// [`MapError::PoolExhausted`], [`MapError::OutOfReach`],
    /// [`MapError::WriteAndExecute`].
    pub fn remap(&self, gpa: Gpa, hpa: Hpa, access: Access) -> Result<Change, MapError> {
        if access.is_writable_and_executable() {
            return Err(MapError::WriteAndExecute);
        }
        if hpa.as_u64() >= self.limit {
            return Err(MapError::OutOfReach);
        }
        let mt = self.memory_type(Gpa::new(hpa.as_u64()));
        self.change(gpa, |old| Leaf {
            hpa: hpa.page_base(),
            access: access.legal(),
            mt,
            soft: Soft::default(),
            ..old
        })
    }

    /// The way on when the pool is used up: gives the whole leaf around `gpa`,
    /// whatever its size, all rights and the state exempt. The caller counts the
    /// loss of coverage; `status` shows it.
    ///
    /// # Errors
    /// [`MapError::PoolExhausted`], [`MapError::OutOfReach`] if `gpa` is not
    /// mapped and cannot be.
    pub fn exempt_whole(&self, gpa: Gpa) -> Result<Change, MapError> {
        self.give_whole(gpa, Access::all())
    }

    /// The same once a processor's guest mode execute trap has been switched off:
    /// every access is the user's again, so the leaf must be the user's, whose right
    /// to fetch is the kernel's then. Only for the format with that trap.
    ///
    /// # Errors
    /// As [`Self::exempt_whole`].
    pub fn exempt_untrapped(&self, gpa: Gpa) -> Result<Change, MapError> {
        self.give_whole(gpa, Access::RW | Access::EXEC_USER)
    }

    fn give_whole(&self, gpa: Gpa, access: Access) -> Result<Change, MapError> {
        let _ = self.ensure(gpa)?;
        let slot = self.walk(gpa)?;
        let old = slot.leaf.ok_or(MapError::PoolExhausted)?;
        let new = Leaf {
            access,
            soft: Soft {
                state: PageState::Exempt,
                ..old.soft
            },
            ..old
        };
        let flush = self.replace(&slot, Some(new));
        Ok(Change { flush, old, new })
    }

    /// Gives every mapped page in `range` the memory type that the MTRRs say
    /// now, splitting where one leaf has become two types.
    pub fn retype(&self, range: Range<Gpa>) -> Retyped {
        let mut done = Retyped::default();
        let mut at = range.start.page_base().as_u64();
        let end = range.end.as_u64().min(self.limit);
        while at < end {
            let Ok(slot) = self.walk(Gpa::new(at)) else {
                break;
            };
            let Some(leaf) = slot.leaf else {
                at = next_boundary(at, slot.level);
                continue;
            };
            let target = Gpa::new(leaf.hpa.as_u64());
            let mt = self.range_type(target, leaf.size);
            if mt.is_none()
                && let Ok(flush) = self.split_once(&slot, &leaf)
            {
                done.flush |= flush;
                continue;
            }
            done.degraded = done.degraded.saturating_add(u64::from(mt.is_none()));
            done.flush |= self.retype_leaf(&slot, leaf, mt.unwrap_or(MemoryType::Uc));
            at = next_boundary(at, slot.level);
        }
        done
    }

    /// Pages by state and tables by level, from counters kept with each change.
    #[must_use]
    pub fn count_pages(&self) -> PageCounts {
        let table = |level: usize| {
            self.tally
                .tables
                .get(level - 1)
                .map_or(0, |n| n.load(Ordering::Relaxed))
        };
        PageCounts {
            writable: self.tally.state(PageState::Writable),
            executable: self.tally.state(PageState::Executable),
            stepping: self.tally.state(PageState::Stepping),
            exempt: self.tally.state(PageState::Exempt),
            hidden: self.tally.hidden.load(Ordering::Relaxed),
            split_2m: table(1),
            split_1g: table(2),
        }
    }

    /// All leaves in rising order of address. Each step walks from the root;
    /// for tests, reports and the way out, not for the exit path.
    #[must_use]
    pub fn leaves(&self) -> Leaves<'_, 'a, F> {
        Leaves { space: self, at: 0 }
    }

    pub(crate) fn root_table(&self) -> &'a Table {
        self.root.1
    }

    /// The table of 4 KB leaves around `gpa`.
    pub(crate) fn leaf_table(&self, gpa: Gpa) -> Option<&'a Table> {
        let slot = self.walk(gpa).ok()?;
        (slot.level == 1).then_some(slot.table)
    }

    /// Tells `visit` each entry that was changed since `generation`, and returns
    /// the generation now. `None` if that is too long ago to know, or `visit`
    /// returns `false`.
    #[inline]
    pub(crate) fn changes_since(
        &self,
        generation: u64,
        mut visit: impl FnMut(Note) -> bool,
    ) -> Option<u64> {
        let now = self.generation();
        if now.wrapping_sub(generation) > JOURNAL as u64 {
            return None;
        }
        let mut at = generation;
        while at != now {
            if !visit(Note(self.journal_slot(at)?.load(Ordering::Relaxed))) {
                return None;
            }
            at = at.wrapping_add(1);
        }
        Some(now)
    }

    /// The type of the 4 KB page at `gpa`.
    pub(crate) fn memory_type(&self, gpa: Gpa) -> MemoryType {
        self.range_type(gpa, PageSize::Size4K)
            .unwrap_or(MemoryType::Uc)
    }

    /// An identity leaf with the rights of data.
    pub(crate) fn data_leaf(&self, gpa: Gpa, size: PageSize, mt: MemoryType) -> Leaf {
        let gpa = gpa.align_down(size);
        Leaf {
            gpa,
            hpa: Hpa::identity(gpa),
            size,
            access: self.rights(PageState::Writable),
            mt,
            soft: Soft::default(),
        }
    }

    pub(crate) fn encode(&self, leaf: &Leaf) -> u64 {
        self.format
            .leaf(leaf.hpa, leaf.size, leaf.access, leaf.mt, leaf.soft)
    }

    /// Reads the entry for `gpa` in a table of `level`.
    pub(crate) fn decode(&self, raw: u64, level: u8, gpa: Gpa) -> Entry {
        match self.format.decode(raw, level) {
            Decoded::Absent => Entry::Absent,
            Decoded::Table(hpa) => Entry::Table(hpa),
            Decoded::Leaf {
                hpa,
                size,
                access,
                mt,
                soft,
            } => Entry::Leaf(Leaf {
                gpa: gpa.align_down(size),
                hpa,
                size,
                access,
                mt,
                soft,
            }),
        }
    }

    fn range_type(&self, gpa: Gpa, size: PageSize) -> Option<MemoryType> {
        if self.format.has_memory_types() {
            self.mtrr.type_of_range(gpa, size)
        } else {
            Some(MemoryType::Wb)
        }
    }

    fn largest_leaf(&self, gpa: Gpa) -> Leaf {
        for size in [PageSize::Size1G, PageSize::Size2M] {
            if size == PageSize::Size1G && !self.has_1g {
                continue;
            }
            if let Some(mt) = self.range_type(gpa, size) {
                return self.data_leaf(gpa, size, mt);
            }
        }
        self.data_leaf(gpa, PageSize::Size4K, self.memory_type(gpa))
    }

    /// Follows the tables to the entry that maps `gpa` or is absent.
    #[inline]
    fn walk(&self, gpa: Gpa) -> Result<Found<'a>, MapError> {
        if gpa.as_u64() >= self.limit {
            return Err(MapError::OutOfReach);
        }
        let mut table = self.root.1;
        let mut level = ROOT_LEVEL;
        loop {
            let index = table_index(gpa, level);
            let raw = table.load(index);
            if let Some(hpa) = self.format.next_table(raw, level) {
                // An entry that leads nowhere is not one of ours.
                table = self.pool.find(hpa).ok_or(MapError::OutOfReach)?;
                level = level.wrapping_sub(1);
                continue;
            }
            let leaf = match self.decode(raw, level, gpa) {
                Entry::Leaf(leaf) => Some(leaf),
                Entry::Table(_) | Entry::Absent => None,
            };
            return Ok(Found {
                gpa,
                table,
                level,
                index,
                raw,
                leaf,
            });
        }
    }

    /// Makes `leaf` what maps `gpa` below `slot`, which is absent or that very
    /// leaf, in pieces around `gpa` down to `bottom`. New tables are complete
    /// before the one store that makes them reachable; they are claimed only
    /// when all of them can be had and `reserve` tables remain.
    fn hang(
        &self,
        slot: &Found<'a>,
        leaf: &Leaf,
        gpa: Gpa,
        bottom: PageSize,
        reserve: usize,
    ) -> Result<Flush, MapError> {
        let needed = usize::from(slot.level.saturating_sub(bottom.level()));
        if self.pool.available() < needed.saturating_add(reserve) {
            return Err(MapError::PoolExhausted);
        }
        let mut raw = self.encode(leaf);
        for level in bottom.level()..slot.level {
            let (hpa, table) = self.pool.claim().ok_or(MapError::PoolExhausted)?;
            if level < leaf.size.level() {
                self.subdivide(table, leaf, gpa, level);
            } else {
                table.clear();
            }
            if level >= leaf.size.level() || level > bottom.level() {
                table.store(table_index(gpa, level), raw);
            }
            self.tally.table(level);
            raw = self.format.table(hpa);
        }
        slot.table.store(slot.index, raw);
        if slot.leaf.is_none() {
            self.tally.leaf(leaf, true);
        }
        self.advance(gpa, slot.level);
        Ok(if slot.leaf.is_some() {
            Flush::Revoked
        } else {
            Flush::Relaxed
        })
    }

    /// The 4 KB entry for `gpa`, after filling and splitting as needed.
    #[inline]
    fn small_slot(&self, gpa: Gpa) -> Result<(Found<'a>, Flush), MapError> {
        let slot = self.walk(gpa)?;
        match slot.leaf {
            Some(leaf) if leaf.size == PageSize::Size4K => Ok((slot, Flush::None)),
            _ => self.make_small(&slot, gpa),
        }
    }

    /// Fills or splits what `slot` found. A missing entry is filled in small
    /// pieces at once: a large leaf that is seen for a moment only would have to
    /// be broken again.
    #[cold]
    fn make_small(&self, slot: &Found<'a>, gpa: Gpa) -> Result<(Found<'a>, Flush), MapError> {
        let leaf = slot.leaf.unwrap_or_else(|| self.largest_leaf(gpa));
        let flush = self.hang(slot, &leaf, gpa, PageSize::Size4K, self.reserve())?;
        Ok((self.walk(gpa)?, flush))
    }

    /// Splits `leaf` at `slot` into the 512 leaves of the next smaller size.
    fn split_once(&self, slot: &Found<'a>, leaf: &Leaf) -> Result<Flush, MapError> {
        let size = PageSize::at_level(slot.level.saturating_sub(1)).ok_or(MapError::OutOfReach)?;
        self.hang(slot, leaf, leaf.gpa, size, self.reserve())
    }

    /// Fills `table`, the one of `level` on the way to `gpa`, with parts of
    /// `whole`, a larger leaf around `gpa`.
    pub(crate) fn subdivide(&self, table: &Table, whole: &Leaf, gpa: Gpa, level: u8) {
        let Some(size) = PageSize::at_level(level) else {
            return;
        };
        let span = PageSize::at_level(level.wrapping_add(1)).unwrap_or(whole.size);
        let offset = gpa
            .align_down(span)
            .as_u64()
            .wrapping_sub(whole.gpa.as_u64());
        let mut raw = self.encode(&Leaf {
            hpa: Hpa::new(whole.hpa.as_u64().wrapping_add(offset)),
            size,
            ..*whole
        });
        for index in 0..ENTRIES {
            table.store(index, raw);
            raw = raw.wrapping_add(size.bytes());
        }
    }

    /// Tables that splits leave to fills, in proportion for a small pool.
    fn reserve(&self) -> usize {
        FILL_RESERVE.min(self.pool.capacity() / 8)
    }

    #[inline]
    fn change(&self, gpa: Gpa, update: impl FnOnce(Leaf) -> Leaf) -> Result<Change, MapError> {
        let (slot, split) = self.small_slot(gpa)?;
        let old = slot.leaf.ok_or(MapError::OutOfReach)?;
        let new = update(old);
        let flush = split | self.replace(&slot, Some(new));
        Ok(Change { flush, old, new })
    }

    fn retype_leaf(&self, slot: &Found<'a>, leaf: Leaf, mt: MemoryType) -> Flush {
        if leaf.mt == mt {
            return Flush::None;
        }
        self.replace(slot, Some(Leaf { mt, ..leaf }))
    }

    /// Exchanges a leaf for another of the same size, or for nothing, by one
    /// store, and says what that asks of the cores.
    #[inline]
    fn replace(&self, slot: &Found<'a>, new: Option<Leaf>) -> Flush {
        let raw = new.map_or(0, |leaf| self.encode(&leaf));
        if raw == slot.raw {
            return Flush::None;
        }
        slot.table.store(slot.index, raw);
        if let Some(old) = &slot.leaf {
            self.tally.leaf(old, false);
        }
        if let Some(new) = &new {
            self.tally.leaf(new, true);
        }
        self.advance(slot.gpa, slot.level);
        let Some(old) = &slot.leaf else {
            return Flush::Relaxed;
        };
        // Judged by what the format made of the new leaf: not every right can be
        // said in each.
        match self.decode(raw, slot.level, slot.gpa) {
            Entry::Leaf(new) => {
                if old.hpa != new.hpa || old.mt != new.mt || !new.access.contains(old.access) {
                    Flush::Revoked
                } else if old.access == new.access {
                    Flush::None
                } else {
                    Flush::Relaxed
                }
            }
            Entry::Absent | Entry::Table(_) => Flush::Revoked,
        }
    }

    /// Notes that the entry for `gpa` in a table of `level` has changed.
    #[inline]
    fn advance(&self, gpa: Gpa, level: u8) {
        self.note(Note(gpa.page_base().as_u64() | u64::from(level)));
    }

    /// The same.
    #[inline]
    pub(crate) fn note(&self, note: Note) {
        // One writer at a time: the holder of the transition lock.
        let generation = self.generation.load(Ordering::Relaxed);
        if let Some(slot) = self.journal_slot(generation) {
            slot.store(note.0, Ordering::Relaxed);
        }
        self.generation
            .store(generation.wrapping_add(1), Ordering::Release);
    }

    /// Counts a 4 KB page that has gone from one state to another.
    #[inline]
    pub(crate) fn turned(&self, was: PageState, is: PageState) {
        self.tally.turned(was, is);
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "modulo JOURNAL")]
    fn journal_slot(&self, generation: u64) -> Option<&AtomicU64> {
        self.journal.get(generation as usize % JOURNAL)
    }
}

/// An entry together with the address that it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    Absent,
    Table(Hpa),
    Leaf(Leaf),
}

/// The first address that the next entry of a table of `level` maps.
fn next_boundary(at: u64, level: u8) -> u64 {
    let bytes = PAGE_BYTES << (9 * u32::from(level.saturating_sub(1) & 3));
    (at & !(bytes - 1)).saturating_add(bytes)
}

/// Iterator over the leaves of a space; see [`Space::leaves`].
#[derive(Debug)]
pub struct Leaves<'s, 'a, F: NestedEntry> {
    space: &'s Space<'a, F>,
    at: u64,
}

impl<F: NestedEntry> Iterator for Leaves<'_, '_, F> {
    type Item = Leaf;

    fn next(&mut self) -> Option<Leaf> {
        loop {
            let slot = self.space.walk(Gpa::new(self.at)).ok()?;
            self.at = next_boundary(self.at, slot.level);
            if slot.leaf.is_some() {
                return slot.leaf;
            }
        }
    }
}
