//! Every interleaving of a ring's writer and reader, and of the evidence pages.
//!
//! `driver/src/ring.rs` and `driver/src/evidence.rs` themselves, with loom's
//! atomics and cells: a cell that both sides touch at once fails the model. The
//! broken variants (`ring_variants.rs`) prove that it would notice.

mod sync {
    #[expect(
        clippy::unsafe_removed_from_name,
        reason = "the driver's cell has a name of its own"
    )]
    pub(crate) use loom::cell::UnsafeCell as Cell;
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

#[path = "../../../driver/src/evidence.rs"]
mod evidence;
#[path = "../../../driver/src/ring.rs"]
mod ring;

mod scenarios {
    include!("ring_scenarios.rs");
}

mod variants {
    include!(concat!(env!("OUT_DIR"), "/ring_variants.rs"));
}

#[test]
fn every_event_is_taken_once_or_counted() {
    scenarios::writer_and_reader();
}

#[test]
fn repeats_are_counted_with_their_like() {
    scenarios::repeats();
}

#[test]
fn a_page_belongs_to_one_side() {
    scenarios::pages();
}

#[test]
fn two_cores_share_the_pages() {
    scenarios::two_writers();
}

macro_rules! wrong {
    ($($variant:ident in $scenario:ident: $message:literal,)*) => {$(
        #[test]
        #[should_panic(expected = $message)]
        fn $variant() {
            variants::$variant::scenarios::$scenario();
        }
    )*};
}

wrong! {
    event_after_the_position in writer_and_reader: "Causality violation",
    relaxed_position in writer_and_reader: "Causality violation",
    relaxed_tail in writer_and_reader: "Causality violation",
    loss_is_not_counted in writer_and_reader: "nothing else is missing",
    full_ring_is_overwritten in writer_and_reader: "in order, each once",
    count_is_not_closed in writer_and_reader: "all that was kept",
    count_is_read_early in writer_and_reader: "all that was kept",
    count_is_not_reset in repeats: "ring.repeat",
    repeat_wins_over_the_reader in writer_and_reader: "all that was kept",
    page_is_freed_early in pages: "Causality violation",
    relaxed_free in pages: "Causality violation",
    page_is_claimed_twice in two_writers: "Causality violation",
}
