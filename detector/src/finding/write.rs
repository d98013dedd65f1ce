//! When two events are one finding.
//!
//! Same kind, same instruction, same page, and nobody has read the first yet.
//! Writes must also touch or nearly touch: `rep movs` is seen one step at a time,
//! and a step that happens to write the byte that was there leaves a gap, which
//! is filled from the evidence page. Two writes far apart in a page are two
//! findings, because they are two hooks.

use super::{EvidenceStore, Page};
use crate::event::{Event, Flags};
use crate::wire::{Finding, FindingFlags, WRITE_ROOM};

/// Unchanged bytes that two parts of one write may have between them.
const GAP_MAX: usize = 16;

/// Merges `event` into `finding` if they belong together; gives its number.
pub(super) fn merge(
    finding: &mut Finding,
    event: &Event,
    evidence: Option<&Page>,
    pages: &EvidenceStore,
) -> Option<u64> {
    let same = finding.kind == event.kind
        && finding.rip == event.rip
        && finding.gpa >> 12 == event.gpa >> 12;
    if !same {
        return None;
    }
    let has_bytes = finding.write_length > 0 && event.write_length > 0;
    if has_bytes {
        let kept = pages.page(finding.seq);
        let page = evidence.map(<[u8; 4096]>::as_slice).or(kept);
        join(finding, event, page)?;
    }
    finding.count = finding.count.saturating_add(u64::from(event.count.max(1)));
    Some(finding.seq)
}

/// A window of up to [`WRITE_ROOM`] bytes of a page with what is known of it.
struct Window {
    start: usize,
    known: [bool; WRITE_ROOM],
    old: [u8; WRITE_ROOM],
    new: [u8; WRITE_ROOM],
}

impl Window {
    fn put(&mut self, at: usize, old: u8, new: u8, keep_old: bool) {
        let Some(index) = at.checked_sub(self.start).filter(|i| *i < WRITE_ROOM) else {
            return;
        };
        if !(keep_old && self.known[index]) {
            self.old[index] = old;
        }
        self.new[index] = new;
        self.known[index] = true;
    }
}

fn join(finding: &mut Finding, event: &Event, page: Option<&[u8]>) -> Option<()> {
    let first = range(finding.write_offset, finding.write_length);
    let second = range(event.write_offset, event.write_length);
    let start = first.0.min(second.0);
    let end = first.1.max(second.1);
    let gap = first.1.min(second.1)..second.0.max(first.0);
    if gap.len() > GAP_MAX || (!gap.is_empty() && page.is_none()) {
        return None;
    }
    let mut window = Window {
        start,
        known: [false; WRITE_ROOM],
        old: [0; WRITE_ROOM],
        new: [0; WRITE_ROOM],
    };
    let used = usize::try_from(finding.write_bytes)
        .unwrap_or(0)
        .min(WRITE_ROOM);
    for index in 0..used {
        window.put(
            first.0 + index,
            finding.old[index],
            finding.new[index],
            false,
        );
    }
    // The later write says what is there now; what was there first stays.
    for index in 0..event.write_bytes() {
        window.put(second.0 + index, event.old[index], event.new[index], true);
    }
    for at in gap {
        if let Some(byte) = page.and_then(|page| page.get(at)) {
            window.put(at, *byte, *byte, false);
        }
    }
    let span = (end - start).min(WRITE_ROOM);
    let known = window.known.iter().take(span).take_while(|k| **k).count();
    finding.old = [0; WRITE_ROOM];
    finding.new = [0; WRITE_ROOM];
    finding.old[..known].copy_from_slice(&window.old[..known]);
    finding.new[..known].copy_from_slice(&window.new[..known]);
    finding.write_offset = u32::try_from(start).unwrap_or(0);
    finding.write_length = u32::try_from(end - start).unwrap_or(0);
    finding.write_bytes = u32::try_from(known).unwrap_or(0);
    for (from, to) in [
        (Flags::OLD, FindingFlags::OLD),
        (Flags::NEW, FindingFlags::NEW),
    ] {
        if !event.flags().contains(from) {
            finding.flags &= !to.bits();
        }
    }
    Some(())
}

/// Start and end in the page; hostile numbers are cut to it.
fn range(offset: u32, length: u32) -> (usize, usize) {
    let start = usize::try_from(offset & 0xfff).unwrap_or(0);
    let length = usize::try_from(length.min(4096)).unwrap_or(0);
    (start, start + length)
}
