//! The private path: the named pages have the named rights, everything else is
//! as in the shared tables, and the shared tables do not change.

use ept::addr::{Gpa, Hpa};
use ept::entry::{Access, EptFormat, Soft};
use ept::memtype::MtrrState;
use ept::pool::Pool;
use ept::private::{NoRoom, PrivatePath, TABLES};
use ept::space::Space;
use ept::table::Table;
use ept::wx::PageState;

use crate::rng::{Rng, scaled};
use crate::walker::{Memory, Translation, walk_ept};

const MB: u64 = 1 << 20;
const GB: u64 = 1 << 30;
const PHYS_BITS: u32 = 40;

struct Bench {
    memory: Memory<'static>,
    space: Space<'static, EptFormat>,
    path: PrivatePath<'static>,
    private: &'static [Table],
}

fn bench() -> Bench {
    let mtrr: &MtrrState = Box::leak(Box::new(MtrrState::new(0, 0x806, [0; 11], &[], 40)));
    let mut memory = Memory::new();
    let (base, tables) = memory.add(0x3_0000_0000, 64);
    let chunks: [(Hpa, &[Table]); 1] = [(base, tables)];
    let pool = Pool::new(&chunks).unwrap();
    let space = Space::new(EptFormat { mbec: true }, pool, mtrr, 40, true).unwrap();
    let _ = space.fill(Gpa::new(0)..Gpa::new(8 * GB)).unwrap();
    let (base, tables) = memory.add(0x3_8000_0000, TABLES);
    let path = PrivatePath::in_chunk(base, tables).unwrap();
    Bench {
        memory,
        space,
        path,
        private: tables,
    }
}

impl Bench {
    fn shared(&self, gpa: u64) -> Option<Translation> {
        walk_ept(
            &self.memory,
            self.space.root(),
            Gpa::new(gpa),
            true,
            PHYS_BITS,
        )
    }

    fn private(&self, gpa: u64) -> Option<Translation> {
        walk_ept(
            &self.memory,
            self.path.root(),
            Gpa::new(gpa),
            true,
            PHYS_BITS,
        )
    }

    /// All pages around `pages` and samples elsewhere are the same on both
    /// paths, but for `pages` themselves.
    fn check(&self, pages: &[u64]) {
        let around = pages
            .iter()
            .flat_map(|page| (0..512).map(move |i| (page & !0x1f_ffff) + i * 4096));
        let elsewhere = (0..64).map(|i| i * 131 * MB);
        for gpa in around.chain(elsewhere) {
            let (shared, private) = (self.shared(gpa), self.private(gpa));
            if pages.contains(&gpa) {
                let private = private.unwrap();
                assert_eq!(private.bytes, 4096);
                assert_eq!(private.frame, gpa);
                assert!(private.rights.is_writable_and_executable());
                assert!(!shared.is_some_and(|s| s.rights.is_writable_and_executable()));
                continue;
            }
            let Some(shared) = shared else {
                assert!(private.is_none_or(|p| !p.rights.contains(Access::EXEC_KERNEL)));
                continue;
            };
            let private = private.unwrap();
            assert_eq!(
                gpa - private.base + private.frame,
                gpa - shared.base + shared.frame
            );
            assert_eq!(private.rights, shared.rights, "{gpa:#x}");
            assert_eq!(private.memory_type, shared.memory_type, "{gpa:#x}");
        }
    }
}

fn state(state: PageState) -> Soft {
    Soft {
        state,
        ..Soft::default()
    }
}

#[test]
fn one_page_has_both_rights_and_all_else_is_shared() {
    let bench = bench();
    let page = 5 * GB + 3 * 2 * MB + 0x7000;
    let neighbour = Gpa::new(page + 0x1000);
    let _ = bench
        .space
        .set_state(Gpa::new(page), state(PageState::Stepping))
        .unwrap();
    let _ = bench
        .space
        .set_state(neighbour, state(PageState::Executable))
        .unwrap();
    let used = bench.space.pool().used();
    let root = bench
        .path
        .build(&bench.space, &[(Gpa::new(page), Access::all())])
        .unwrap();
    assert_eq!(root, bench.path.root());
    assert_ne!(root, bench.space.root());
    assert_eq!(bench.space.pool().used(), used);
    bench.check(&[page]);
    let seen = bench.private(neighbour.as_u64()).unwrap();
    assert!(seen.rights.contains(Access::EXEC_KERNEL));
}

#[test]
fn large_leaves_are_split_privately() {
    let bench = bench();
    for page in [6 * GB + 2 * MB, 0x7000, 5 * GB - 0x1000] {
        assert!(bench.shared(page).unwrap().bytes > 4096);
        let page = [(Gpa::new(page), Access::all())];
        bench.path.build(&bench.space, &page).unwrap();
        bench.check(&[page[0].0.as_u64()]);
        // The shared tables keep their large leaf.
        assert!(bench.shared(page[0].0.as_u64()).unwrap().bytes > 4096);
    }
    // Not mapped yet at all.
    let page = 100 * GB + 0x5000;
    bench
        .path
        .build(&bench.space, &[(Gpa::new(page), Access::all())])
        .unwrap();
    bench.check(&[page]);
    assert_eq!(bench.shared(page), None);
}

#[test]
fn several_pages_fit_as_long_as_the_tables_suffice() {
    let bench = bench();
    let build = |pages: &[u64]| {
        let pages: Vec<_> = pages
            .iter()
            .map(|&gpa| (Gpa::new(gpa), Access::all()))
            .collect();
        bench.path.build(&bench.space, &pages)
    };
    // Four pages in one table, and two at far ends of the address space.
    for pages in [
        vec![GB, GB + 0x1000, GB + 0x2000, GB + 0x1f_f000],
        vec![GB, GB + 2 * MB, GB + 4 * MB, GB + 6 * MB],
        vec![0x1000, 700 * GB],
        vec![GB, 3 * GB],
    ] {
        assert!(build(&pages).is_ok(), "{pages:?}");
        bench.check(&pages);
    }
    assert_eq!(build(&[GB, 3 * GB, 5 * GB, 7 * GB]), Err(NoRoom));
    assert!(bench.path.is_stale(&bench.space));
    assert_eq!(build(&[1 << 40]), Err(NoRoom));
    // A refusal is not the end of the path.
    assert!(build(&[GB]).is_ok());
    bench.check(&[GB]);
}

#[test]
fn a_change_of_the_shared_tables_makes_it_stale() {
    let bench = bench();
    let page = Gpa::new(GB);
    assert!(bench.path.is_stale(&bench.space));
    let pages = [(page, Access::all())];
    bench.path.build(&bench.space, &pages).unwrap();
    assert!(!bench.path.is_stale(&bench.space));
    let neighbour = Gpa::new(GB + 0x1000);
    let _ = bench
        .space
        .set_state(neighbour, state(PageState::Executable))
        .unwrap();
    assert!(bench.path.is_stale(&bench.space));
    bench.path.build(&bench.space, &pages).unwrap();
    assert!(!bench.path.is_stale(&bench.space));
    bench.check(&[GB]);
}

/// Whether a build touched more than it had to: an entry of the private root
/// that nobody uses is written over only by a copy of the whole.
fn was_copied(bench: &Bench, pages: &[(Gpa, Access)]) -> bool {
    const UNUSED: usize = 300;
    bench.private[0].store(UNUSED, 8);
    bench.path.build(&bench.space, pages).unwrap();
    bench.private[0].load(UNUSED) != 8
}

#[test]
fn the_same_region_again_is_refreshed_and_not_copied() {
    let bench = bench();
    let page = Gpa::new(GB + 0x5000);
    let pages = [(page, Access::all())];
    let set = |gpa: u64, to| {
        let _ = bench.space.set_state(Gpa::new(gpa), state(to)).unwrap();
    };
    set(GB + 0x5000, PageState::Executable);
    set(3 * GB, PageState::Writable);
    assert!(was_copied(&bench, &pages));
    set(GB + 0x5000, PageState::Stepping);
    set(GB + 0x6000, PageState::Executable);
    set(3 * GB, PageState::Executable);
    assert!(!was_copied(&bench, &pages));
    bench.check(&[GB + 0x5000]);
    // The page before loses its rights, another one gets them.
    let other = [(Gpa::new(GB + 0x9000), Access::all())];
    assert!(!was_copied(&bench, &other));
    bench.check(&[GB + 0x9000]);
    // A new table, here or elsewhere, and another region ask for a copy.
    set(GB + 5 * 2 * MB, PageState::Executable);
    assert!(was_copied(&bench, &other));
    set(4 * GB, PageState::Executable);
    assert!(was_copied(&bench, &other));
    assert!(was_copied(&bench, &[(Gpa::new(4 * GB), Access::all())]));
    // So do more changes than are remembered.
    let _ = bench.path.build(&bench.space, &pages);
    for i in 0..20 {
        set(GB + i * 0x1000, PageState::Executable);
        set(GB + i * 0x1000, PageState::Stepping);
    }
    assert!(was_copied(&bench, &pages));
    bench.check(&[GB + 0x5000]);
}

#[test]
fn random_changes_and_builds_agree() {
    for seed in 0..u64::from(scaled(20)) {
        let bench = bench();
        let mut rng = Rng::new(seed);
        for _ in 0..60 {
            for _ in 0..rng.below(4) {
                let region = [GB, GB, GB + 2 * MB, 6 * GB][rng.below(4)];
                let gpa = Gpa::new(region + rng.below(8) as u64 * 0x1000);
                let to = [
                    PageState::Writable,
                    PageState::Executable,
                    PageState::Stepping,
                ];
                let _ = bench.space.set_state(gpa, state(to[rng.below(3)])).unwrap();
            }
            let region = [GB, GB, GB, 6 * GB][rng.below(4)];
            let mut pages: Vec<_> = (0..=rng.below(5))
                .map(|_| region + rng.below(8) as u64 * 0x1000)
                .collect();
            if rng.chance(8) {
                pages.push(GB + 2 * MB);
            }
            let given: Vec<_> = pages
                .iter()
                .map(|&gpa| (Gpa::new(gpa), Access::all()))
                .collect();
            let slot = bench.space.find(given[0].0);
            let aimed = slot.filter(|_| given.len() == 1);
            let aimed = aimed.and_then(|slot| bench.path.aim(&slot, Access::all()));
            if aimed.is_none() {
                bench.path.build(&bench.space, &given).unwrap();
            }
            for i in 0..16 {
                let gpa = [GB, 6 * GB][rng.below(2)] + i * 0x1000;
                let (shared, private) = (bench.shared(gpa).unwrap(), bench.private(gpa).unwrap());
                let expected = if pages.contains(&gpa) {
                    Access::all()
                } else {
                    shared.rights
                };
                assert_eq!(private.rights, expected, "seed {seed} {gpa:#x}");
            }
        }
    }
}

#[test]
fn a_path_needs_seven_aligned_tables() {
    let mut memory = Memory::new();
    let (base, tables) = memory.add(0x1000_0000, 8);
    assert!(PrivatePath::in_chunk(base, tables).is_some());
    assert!(PrivatePath::in_chunk(base, &tables[..6]).is_none());
    assert!(PrivatePath::in_chunk(base, &[]).is_none());
    assert!(PrivatePath::in_chunk(Hpa::new(0x1000_0800), tables).is_none());
}

/// [`PrivatePath::aim`] where it serves, else [`PrivatePath::build`].
fn aim(bench: &Bench, gpa: u64) -> bool {
    let slot = bench.space.find(Gpa::new(gpa)).unwrap();
    let aimed = bench.path.aim(&slot, Access::all());
    if let Some(root) = aimed {
        assert_eq!(root, bench.path.root());
    } else {
        let pages = [(Gpa::new(gpa), Access::all())];
        bench.path.build(&bench.space, &pages).unwrap();
    }
    assert!(!bench.path.is_stale(&bench.space));
    aimed.is_some()
}

#[test]
fn the_same_region_again_is_aimed_at() {
    let bench = bench();
    let set = |gpa: u64, to| {
        let _ = bench.space.set_state(Gpa::new(gpa), state(to)).unwrap();
    };
    let (page, other) = (GB + 0x5000, GB + 0x9000);
    for gpa in [page, other, 6 * GB] {
        set(gpa, PageState::Executable);
    }
    // A path that was never built, or failed to be, is not aimed.
    assert!(!aim(&bench, page));
    set(page, PageState::Stepping);
    assert!(aim(&bench, page));
    bench.check(&[page]);
    // Neighbours change, the page before goes back to what is shared.
    set(page, PageState::Executable);
    set(GB + 0x6000, PageState::Executable);
    set(6 * GB, PageState::Stepping);
    assert!(aim(&bench, other + 0x123));
    bench.check(&[other]);
    // The same without any change in between.
    assert!(aim(&bench, page));
    bench.check(&[page]);
    // What was aimed is known to a build, too.
    let _ = was_copied(&bench, &[(Gpa::new(other), Access::all())]);
    bench.check(&[other]);
    // Another region, a new table, too many changes: all ask for a build.
    assert!(!aim(&bench, 6 * GB));
    bench.check(&[6 * GB]);
    assert!(!aim(&bench, page));
    set(7 * GB, PageState::Executable);
    assert!(!aim(&bench, page));
    bench.check(&[page]);
    for i in 0..17 {
        let to = [PageState::Executable, PageState::Stepping][i % 2];
        set(GB + 0x7000, to);
    }
    assert!(!aim(&bench, page));
    // Sixteen are remembered.
    for i in 0..16 {
        let to = [PageState::Stepping, PageState::Executable][i % 2];
        set(GB + 0x7000, to);
    }
    assert!(aim(&bench, page));
    bench.check(&[page]);
    // A path for two pages is not aimed: it would keep the second.
    let pair = [page, other].map(|gpa| (Gpa::new(gpa), Access::all()));
    bench.path.build(&bench.space, &pair).unwrap();
    assert!(!aim(&bench, page));
    bench.check(&[page]);
}

/// After a build that failed the tables are neither those of the pages before
/// nor of the pages asked for.
#[test]
fn a_path_that_failed_is_not_aimed() {
    let bench = bench();
    let page = GB + 0x5000;
    let _ = bench
        .space
        .set_state(Gpa::new(page), state(PageState::Stepping))
        .unwrap();
    assert!(!aim(&bench, page));
    assert!(aim(&bench, page));
    let far = [0, 3, 5, 7].map(|at| (Gpa::new(at * GB), Access::all()));
    assert_eq!(bench.path.build(&bench.space, &far), Err(NoRoom));
    assert!(!aim(&bench, page));
    bench.check(&[page]);
}

#[test]
fn an_aimed_page_has_the_rights_that_were_asked_for() {
    let bench = bench();
    let page = GB + 0x5000;
    let _ = bench
        .space
        .set_state(Gpa::new(page), state(PageState::Executable))
        .unwrap();
    for access in [Access::RW, Access::all(), Access::READ] {
        let slot = bench.space.find(Gpa::new(page)).unwrap();
        if bench.path.aim(&slot, access).is_none() {
            let pages = [(Gpa::new(page), access)];
            bench.path.build(&bench.space, &pages).unwrap();
        }
        assert_eq!(bench.private(page).unwrap().rights, access);
    }
}
