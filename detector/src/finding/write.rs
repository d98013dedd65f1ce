//! When two writes of one finding's kind, instruction page and frame are one.
//!
//! They must touch or nearly touch: `rep movs` is seen one step at a time, and a
//! step that happens to write the byte that was there leaves a gap, which is
//! filled from the evidence page. Two writes far apart in a page are two
//! findings, because they are two hooks, and so are a hook and the restoring of
//! what it replaced. What was read is not changed any more: then only a write of
//! the same bytes to the same place is the same.

use super::{EvidenceStore, Page};
use crate::event::{Event, Flags};
use crate::wire::{Finding, FindingFlags, WRITE_ROOM};

/// Unchanged bytes that two parts of one write may have between them.
const GAP_MAX: usize = 16;

/// Whether an event only repeats (a part of) a finding's write.
pub(super) fn repeats(finding: &Finding, event: &Event) -> bool {
    let first = range(finding.write_offset, finding.write_length);
    let second = range(event.write_offset, event.write_length);
    let within = first.0 <= second.0 && second.1 <= first.1;
    let (Some(known), true) = (finding.new_bytes(), event.flags().contains(Flags::NEW)) else {
        return false;
    };
    let Some(offset) = second.0.checked_sub(first.0).filter(|_| within) else {
        return false;
    };
    let written = event.new.iter().take(event.write_bytes());
    // Bytes that the finding does not hold are not compared.
    let there = known.iter().skip(offset);
    event.write_length > 0 && written.zip(there).all(|(new, old)| new == old)
}

/// Makes `finding` cover the event's write as well, if they touch.
pub(super) fn join(
    finding: &mut Finding,
    event: &Event,
    evidence: Option<&Page>,
    pages: &EvidenceStore,
) -> bool {
    if finding.write_length == 0 || event.write_length == 0 {
        return false;
    }
    let kept = pages.page(finding.seq);
    let page = evidence.map(<[u8; 4096]>::as_slice).or(kept);
    widen(finding, event, page).is_some()
}

/// A window of up to [`WRITE_ROOM`] bytes of a page with what is known of it.
struct Window {
    start: usize,
    known: [bool; WRITE_ROOM],
    old: [u8; WRITE_ROOM],
    new: [u8; WRITE_ROOM],
}

impl Window {
    fn put(&mut self, at: usize, old: u8, new: u8) {
        let Some(index) = at.checked_sub(self.start).filter(|i| *i < WRITE_ROOM) else {
            return;
        };
        self.old[index] = old;
        self.new[index] = new;
        self.known[index] = true;
    }
}

fn widen(finding: &mut Finding, event: &Event, page: Option<&[u8]>) -> Option<()> {
    let first = range(finding.write_offset, finding.write_length);
    let second = range(event.write_offset, event.write_length);
    let start = first.0.min(second.0);
    let end = first.1.max(second.1);
    if first.0 < second.1 && second.0 < first.1 {
        return None;
    }
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
        window.put(first.0 + index, finding.old[index], finding.new[index]);
    }
    for index in 0..event.write_bytes() {
        window.put(second.0 + index, event.old[index], event.new[index]);
    }
    for at in gap {
        if let Some(byte) = page.and_then(|page| page.get(at)) {
            window.put(at, *byte, *byte);
        }
    }
    let known = window.known.iter().take_while(|k| **k).count();
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
