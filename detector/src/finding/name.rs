//! Names for addresses: module, section, nearest export.
//!
//! The newest snapshot is asked first. A loader that does its work and unloads
//! at once (the usual way of manual mapping) is gone from it when its event is
//! drained; for an actor that was in a module when root mode looked, the list of
//! recent unloads is asked then.

use super::is_write;
use crate::event::{Event, Flags, NO_INDEX};
use crate::registry::View;
use crate::wire::{Finding, ImageChange, NAME_ROOM, Place};
use alloc::collections::VecDeque;
use zerocopy::FromZeros;

/// An export's name and the distance to it, as the driver's callback gives it.
#[derive(Clone, Copy, Debug)]
pub struct ExportName {
    name: [u8; NAME_ROOM],
    length: u8,
    offset: u32,
}

impl ExportName {
    /// `name` is cut to what a finding holds.
    #[must_use]
    pub fn new(name: &[u8], offset: u32) -> ExportName {
        let mut room = [0; NAME_ROOM];
        let length = store(&mut room, name);
        ExportName {
            name: room,
            length,
            offset,
        }
    }
}

/// Copies what fits and says how much that was.
pub(super) fn store(room: &mut [u8], name: &[u8]) -> u8 {
    let used = name.len().min(room.len()).min(usize::from(u8::MAX));
    for (to, from) in room.iter_mut().zip(name) {
        *to = *from;
    }
    u8::try_from(used).unwrap_or(0)
}

pub(super) struct Resolver<'r, 'v> {
    pub(super) view: &'r View<'v>,
    /// Modules that have been unloaded, oldest first.
    pub(super) unloaded: &'r VecDeque<ImageChange>,
    pub(super) export: &'r mut dyn FnMut(u64, u32) -> Option<ExportName>,
    /// Of the event's own snapshot.
    pub(super) generation: u32,
}

impl Resolver<'_, '_> {
    pub(super) fn name(&mut self, event: &Event, finding: &mut Finding) {
        finding.actor = self.place(event.rip);
        if finding.actor.module_length == 0 && event.actor_module != NO_INDEX {
            self.name_unloaded(&mut finding.actor);
        }
        let write = is_write(event.kind());
        finding.victim = self.victim(event, write);
        if finding.victim.module_length == 0 && write && event.victim_module != NO_INDEX {
            self.name_unloaded(&mut finding.victim);
        }
        if let Some(address) = self.return_address(event, write) {
            finding.returns = self.place(address);
        }
        let earlier = [&finding.actor, &finding.victim]
            .into_iter()
            .filter(|place| place.present != 0 && place.module_length == 0)
            .find_map(|place| self.earlier(place.address));
        if let Some(image) = earlier {
            finding.earlier = *image;
        }
    }

    fn victim(&mut self, event: &Event, write: bool) -> Place {
        let linear = event
            .flags()
            .contains(Flags::GLA)
            .then_some(event.gla)
            .or((!write).then_some(event.rip));
        // A write may come through any alias of the frame; the module is that
        // of the frame, and the address in it is what the reader looks for.
        let in_page = if event.write_length > 0 {
            u64::from(event.write_offset & 0xfff)
        } else {
            event.gpa & 0xfff
        };
        let by_frame = self.view.by_frame(event.gpa >> 12).filter(|_| write);
        let in_module = by_frame.and_then(|hit| {
            let module = self.view.module(hit.module)?;
            (module.since <= self.generation)
                .then(|| module.base.wrapping_add(u64::from(hit.rva)) | in_page)
        });
        // What root mode saw comes first: the frame may be another one's by now.
        let told = event.flags().contains(Flags::VICTIM_VA) && write;
        let seen = told.then_some(event.victim_va & !0xfff | in_page);
        match seen.or(in_module).or(linear) {
            Some(address) => self.place(address),
            None => Place::new_zeroed(),
        }
    }

    /// At a fetch the word at RSP is where a call came from. At a write it is
    /// whatever the function pushed last, so the first word that points into
    /// live code is taken, and none if there is none.
    fn return_address(&self, event: &Event, write: bool) -> Option<u64> {
        let top = event
            .flags()
            .contains(Flags::RETURN_ADDRESS)
            .then_some(event.return_address);
        if !write && top.is_some() {
            return top;
        }
        let words = usize::from(event.stack_words).min(event.stack.len());
        let code = |address: &u64| {
            let hit = self.view.by_address(*address);
            hit.is_some_and(|hit| hit.executable && hit.live)
        };
        top.into_iter()
            .chain(event.stack.iter().take(words).copied())
            .find(code)
    }

    fn place(&mut self, address: u64) -> Place {
        let mut place = Place::new_zeroed();
        place.present = 1;
        place.address = address;
        let Some(hit) = self.view.by_address(address) else {
            return place;
        };
        let Some(module) = self.view.module(hit.module) else {
            return place;
        };
        // What was loaded there after the event has nothing to do with it.
        if module.since > self.generation {
            return place;
        }
        place.base = module.base;
        place.offset = hit.offset;
        place.module_length = store(&mut place.module, module.name);
        if let Some(section) = hit.section.and_then(|s| self.view.section(s)) {
            place.section_length = store(&mut place.section, section.name());
        }
        if let Some(export) = (self.export)(module.base, hit.offset) {
            place.export = export.name;
            place.export_length = export.length;
            place.export_offset = export.offset;
        }
        place
    }

    /// The module that was unloaded last of those that held an address.
    fn earlier(&self, address: u64) -> Option<&ImageChange> {
        self.unloaded.iter().rev().find(|image| {
            let within = address.checked_sub(image.base);
            within.is_some_and(|offset| offset < u64::from(image.size))
        })
    }

    fn name_unloaded(&self, place: &mut Place) {
        if let Some(image) = self.earlier(place.address) {
            place.base = image.base;
            place.offset = u32::try_from(place.address - image.base).unwrap_or(0);
            place.module_length = store(&mut place.module, image.name());
        }
    }
}
