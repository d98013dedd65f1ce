//! Events between the two vendors' notations: what an exit interrupted
//! (EXITINTINFO), and what the next entry delivers (EVENTINJ).
//!
//! [`crate::event`] writes events as Intel's fields do. AMD's differ in the types:
//! INT1, INT3 and INTO are exceptions like those of the processor.
//!
//! An interrupted event is delivered again at the next entry, unless it comes from
//! an instruction that is about to be executed again: RIP is still at INT n, INT3
//! and INTO when their delivery exits, so these are just resumed. Delivered again,
//! they would run twice, and software interrupts cannot be delivered at all without
//! NRIP save. The address of an interrupted page fault needs no care: CR2 was
//! written before the delivery began, the exit has saved it in the block, and the
//! entry loads it from there.
//!
//! Not all processors fill the field as the manual says. An emulator calls external
//! interrupts and NMIs exceptions; delivered again as such they would be refused
//! as invalid. A vector tells what they are.
//!
//! Pure. AMD APM vol. 2, "Intercepts During IDT Interrupt Delivery" and "Event
//! Injection".

use super::fields::event;
use crate::event::{Event, Interrupted};

/// Intel's types of what software raises.
const PRIVILEGED_SOFTWARE_EXCEPTION: u64 = 5 << event::TYPE_SHIFT;
const SOFTWARE_EXCEPTION: u64 = 6 << event::TYPE_SHIFT;

const NMI_VECTOR: u64 = 2;
const INT3_VECTOR: u64 = 3;
const INTO_VECTOR: u64 = 4;

/// Whether a vector is that of an exception.
const fn is_exception(vector: u64) -> bool {
    matches!(vector, 0 | 1 | 3..=8 | 10..=14 | 16..=21 | 28..=30)
}

/// What was interrupted and has to be delivered again, from EXITINTINFO. What
/// needs no new delivery is not there.
#[must_use]
pub const fn interrupted(exit_int_info: u64) -> Interrupted {
    const NOTHING: Interrupted = Interrupted {
        info: 0,
        error_code: 0,
    };
    if exit_int_info & event::VALID == 0 {
        return NOTHING;
    }
    let vector = exit_int_info & event::VECTOR;
    match exit_int_info & event::TYPE {
        event::INTR => with(event::INTR | vector),
        event::NMI => with(event::NMI | NMI_VECTOR),
        event::EXCEPTION => match vector {
            NMI_VECTOR => with(event::NMI | NMI_VECTOR),
            INT3_VECTOR | INTO_VECTOR => NOTHING,
            32.. => with(event::INTR | vector),
            _ if exit_int_info & event::HAS_ERROR_CODE != 0 => Interrupted {
                error_code: exit_int_info >> event::ERROR_CODE_SHIFT,
                ..with(event::EXCEPTION | event::HAS_ERROR_CODE | vector)
            },
            _ => with(event::EXCEPTION | vector),
        },
        // Software interrupts, and types that are reserved.
        _ => NOTHING,
    }
}

/// An event without an error code.
const fn with(information: u64) -> Interrupted {
    Interrupted {
        info: event::VALID | information,
        error_code: 0,
    }
}

/// EVENTINJ for an event. `None` when VMRUN would refuse it: a type that is
/// reserved, or an exception whose vector is none.
///
/// The caller knows more that cannot be delivered: a software interrupt without
/// NRIP save, and exceptions that the guest's mode does not have.
#[must_use]
pub const fn event_inj(wanted: Event) -> Option<u64> {
    let information = wanted.info();
    let vector = information & event::VECTOR;
    let kind = match information & event::TYPE {
        PRIVILEGED_SOFTWARE_EXCEPTION | SOFTWARE_EXCEPTION => event::EXCEPTION,
        kind => kind,
    };
    let deliverable = match kind {
        event::INTR | event::NMI | event::SOFTWARE => true,
        event::EXCEPTION => is_exception(vector),
        _ => false,
    };
    if information & event::VALID == 0 || !deliverable {
        return None;
    }
    let word = event::VALID | kind | vector;
    Some(match wanted.error_code() {
        Some(code) if kind == event::EXCEPTION => {
            word | event::HAS_ERROR_CODE | code << event::ERROR_CODE_SHIFT
        }
        _ => word,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: u64 = 0x8000_0000;

    /// What comes of an EXITINTINFO, as the next EVENTINJ.
    fn again(exit_int_info: u64) -> Option<u64> {
        let found = interrupted(exit_int_info);
        if found == Interrupted::default() {
            return None;
        }
        assert_ne!(found.info & VALID, 0);
        event_inj(Event::again(found.info, found.error_code))
    }

    #[test]
    fn what_was_interrupted_is_delivered_again() {
        for information in [
            0x8000_00D1,      // external interrupt
            0x8000_0008,      // the same, with a vector of the old controllers
            0x8000_0202,      // NMI
            0x8000_0301,      // #DB
            0x8000_0306,      // #UD
            0x8000_0312,      // #MC
            0x8000_0B08,      // #DF
            0x0018_8000_0B0D, // #GP
            0x0002_8000_0B0E, // #PF
        ] {
            assert_eq!(again(information), Some(information), "{information:#x}");
        }
    }

    #[test]
    fn instructions_that_raise_events_are_executed_again() {
        for information in [
            0x8000_042E, // INT 2EH
            0x8000_0480,
            0x8000_0303, // INT3
            0x8000_0304, // INTO
            0x8000_0403, // INT3 as an emulator tells of it
        ] {
            assert_eq!(again(information), None, "{information:#x}");
        }
    }

    #[test]
    fn what_an_emulator_calls_an_exception_is_told_by_its_vector() {
        assert_eq!(again(0x8000_0355), Some(0x8000_0055));
        assert_eq!(again(0x8000_0320), Some(0x8000_0020));
        assert_eq!(again(0x8000_03FF), Some(0x8000_00FF));
        assert_eq!(again(0x8000_0302), Some(0x8000_0202));
        // Neither has an error code.
        assert_eq!(again(0x0007_8000_0BFF), Some(0x8000_00FF));
        assert_eq!(again(0x0007_8000_0B02), Some(0x8000_0202));
        // The vector of an NMI does not count.
        assert_eq!(again(0x8000_0200), Some(0x8000_0202));
    }

    /// All values of the fields that mean something, against the rules in other
    /// words.
    #[test]
    fn every_value() {
        for value in 0..1_u64 << 13 {
            let (vector, kind, has_code) = (value & 0xFF, value >> 8 & 7, value >> 11 & 1 != 0);
            let valid = value >> 12 & 1 != 0;
            let information = 0xABCD_0000_0000
                | value & 0xFFF
                | if valid { VALID } else { 0 }
                // Reserved bits do not count.
                | 0x7FFF_F000;
            let wanted = match kind {
                _ if !valid => None,
                0 => Some(vector),
                2 => Some(0x202),
                3 if vector == 2 => Some(0x202),
                3 if vector == 3 || vector == 4 => None,
                3 if vector > 31 => Some(vector),
                3 if [9, 15, 22, 23, 24, 25, 26, 27, 31].contains(&vector) => None,
                3 if has_code => Some(0xABCD_0000_0B00 | vector),
                3 => Some(0x300 | vector),
                _ => None,
            };
            assert_eq!(
                again(information),
                wanted.map(|word| word | VALID),
                "{information:#x}"
            );
        }
    }

    #[test]
    fn every_event_of_ours_can_be_delivered() {
        for (ours, word) in [
            (Event::DOUBLE_FAULT, 0x8000_0B08),
            (Event::DEBUG, 0x8000_0301),
            (Event::UNDEFINED, 0x8000_0306),
            (Event::GENERAL_PROTECTION, 0x8000_0B0D),
            (Event::MACHINE_CHECK, 0x8000_0312),
            (Event::NMI, 0x8000_0202),
        ] {
            assert_eq!(event_inj(ours), Some(word));
        }
    }

    /// The other way, from all values of Intel's field.
    #[test]
    fn every_event_is_translated_or_refused() {
        for value in 0..1_u64 << 13 {
            let (vector, kind, has_code) = (value & 0xFF, value >> 8 & 7, value >> 11 & 1 != 0);
            let valid = value >> 12 & 1 != 0;
            let information = value & 0xFFF | if valid { VALID } else { 0 };
            let found = event_inj(Event::again(information, 0x17));
            let none = [2, 9, 15, 22, 23, 24, 25, 26, 27, 31].contains(&vector) || vector > 31;
            let wanted = match kind {
                _ if !valid => None,
                0 => Some(vector),
                2 | 4 => Some(kind << 8 | vector),
                3 | 5 | 6 if none => None,
                3 | 5 | 6 if has_code => Some(0x17_0000_0B00 | vector),
                3 | 5 | 6 => Some(0x300 | vector),
                _ => None,
            };
            assert_eq!(found, wanted.map(|word| word | VALID), "{information:#x}");
        }
    }
}
