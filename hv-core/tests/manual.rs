//! Event delivery and the choice of controls, against numbers written down from
//! the manual (Intel SDM volume 3, "VM-Entry Controls for Event Injection" and
//! appendix A) and not with the crate's own constants.

use hv_core::error::StartError;
use hv_core::event::{Event, Facts, Interrupted, plan};
use hv_core::probe::Pretend;
use hv_core::vmx::caps::{self, Controls, GuestFeatures, Raw, controls};

#[test]
fn exceptions_are_encoded_as_the_manual_says() {
    for (event, info, code) in [
        (Event::DEBUG, 0x8000_0301, None),
        (Event::NMI, 0x8000_0202, None),
        (Event::UNDEFINED, 0x8000_0306, None),
        (Event::DOUBLE_FAULT, 0x8000_0B08, Some(0)),
        (Event::GENERAL_PROTECTION, 0x8000_0B0D, Some(0)),
        (Event::MACHINE_CHECK, 0x8000_0312, None),
    ] {
        assert_eq!((event.info(), event.error_code()), (info, code));
        assert_eq!(event.is_nmi(), info == 0x8000_0202);
        assert!(!event.needs_length());
    }
}

/// Intel SDM volume 3, "Exception and Interrupt Vectors", and AMD's #VC and
/// #SX: which of them push an error code.
#[test]
fn exceptions_have_the_error_codes_of_their_vectors() {
    for vector in 0..32_u8 {
        let code = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30].contains(&vector);
        let event = Event::exception(vector, 0x1234);
        let info = 0x8000_0300 | u64::from(code) << 11 | u64::from(vector);
        assert_eq!(event.info(), info, "{vector}");
        assert_eq!(event.error_code(), code.then_some(0x1234), "{vector}");
    }
}

/// RFLAGS.RF is pushed as 1 by faults only: not by traps, not by aborts other
/// than #DF, not by what software raises, not by interrupts.
#[test]
fn faults_are_told_from_traps() {
    let raised = |kind: u64, vector: u64| Event::again(1 << 31 | kind << 8 | vector, 0);
    for vector in 0..32 {
        let fault = ![1, 3, 4, 18].contains(&vector);
        assert_eq!(raised(3, vector).is_fault(), fault, "{vector}");
        for kind in [0, 2, 4, 5, 6] {
            assert!(!raised(kind, vector).is_fault());
        }
    }
    for kind in 0..8 {
        assert_eq!(raised(kind, 3).needs_length(), (4..=6).contains(&kind));
    }
}

/// Every kind of interrupted event, with and without something raised, with each
/// way in which the guest may be blocked.
#[test]
fn the_plan_for_every_combination() {
    const CODE: u64 = 1 << 11;
    let vectorings = [
        0,
        0x8000_00D1,
        0x8000_0202,
        0x8000_0306,
        0x8000_0B0E,
        0x8000_0480,
        0x8000_0501,
        0x8000_0603,
        // Not valid: leftovers.
        0x0000_0B0E,
    ];
    let raised = [None, Some(Event::GENERAL_PROTECTION)];
    for number in 0..vectorings.len() * 2 * 16 * 2 * 3 * 2 {
        let mut rest = number;
        let mut take = |count: usize| {
            let part = rest % count;
            rest /= count;
            part
        };
        let info = vectorings[take(vectorings.len())];
        let facts = Facts {
            interrupted: Interrupted {
                info: info | 1 << 12,
                error_code: 0x17,
            },
            raised: raised[take(2)],
            blocking: take(16) as u64,
            unblocked_by_iret: take(2) == 1,
            nmis: u32::try_from(take(3)).unwrap(),
            stepping: take(2) == 1,
        };
        let done = plan(&facts);

        let valid = info >> 31 == 1;
        let exception = info >> 8 & 7 == 3;
        let expected = match (valid, facts.raised) {
            (true, Some(_)) if exception => Some((0x8000_0B08, Some(0))),
            (true, _) => Some((info, (info & CODE != 0).then_some(0x17))),
            (false, Some(_)) => Some((0x8000_0B0D, Some(0))),
            (false, None) => None,
        };
        let free = facts.blocking & 0b1011 == 0 && !facts.unblocked_by_iret;
        let nmi = facts.nmis > 0 && expected.is_none() && free && !facts.stepping;
        let injected = done.inject.map(|event| (event.info(), event.error_code()));
        let wanted = if nmi {
            Some((0x8000_0202, None))
        } else {
            expected
        };
        assert_eq!(injected, wanted, "{facts:x?}");
        assert_eq!(done.repeated, valid && facts.raised.is_none(), "{facts:x?}");
        assert_eq!(done.nmi_taken, nmi, "{facts:x?}");
        let left = facts.nmis - u32::from(nmi);
        assert_eq!(done.nmi_window, left > 0 && !facts.stepping, "{facts:x?}");
        let blocking = match (valid, info >> 8 & 7) {
            (true, 2) => Some(false),
            (true, _) => None,
            (false, _) => facts.unblocked_by_iret.then_some(true),
        };
        assert_eq!(done.nmi_blocking, blocking, "{facts:x?}");
    }
}

/// A processor that can do all and demands only what every processor demands.
fn able() -> Raw {
    let word = |required: u64| 0xFFFF_FFFF_0000_0000 | required;
    Raw {
        basic: 1 << 55 | 0x1234_5678,
        pin: word(0x16),
        primary: word(0x0401_E172 & !(1 << 15 | 1 << 16)),
        secondary: word(0),
        exit: word(0x3_6DFF & !4),
        entry: word(0x11FF & !4),
        ept_vpid: u64::MAX,
        ..Raw::default()
    }
}

fn features() -> GuestFeatures {
    GuestFeatures::default()
}

fn chosen(raw: &Raw, features: GuestFeatures) -> Controls {
    controls(raw, features, Pretend::default()).unwrap()
}

#[test]
fn nothing_is_asked_for_that_is_not_needed() {
    let c = chosen(&able(), features());
    assert_eq!(c.pin, 0x16 | 1 << 3 | 1 << 5);
    assert_eq!(c.primary, 0x0400_6172 | 1 << 28 | 1 << 31);
    assert_eq!(c.secondary, 1 << 1 | 1 << 5 | 1 << 7 | 1 << 22);
    let exit = 0x3_6DFF | 1 << 9 | 0b1111 << 18;
    assert_eq!(c.exit, exit);
    let entry = 0x11FF | 1 << 9 | 0b11 << 14;
    assert_eq!(c.entry, entry);
    assert_eq!(c.launch_entry, entry & !4);
    assert_eq!(c.revision, 0x1234_5678);
    assert!(c.mbec && c.mtf && c.ept_1g && c.advanced_exit_info && !c.cet);
}

/// The bits that are switched while the guest runs.
#[test]
fn windows_and_steps_have_their_bits() {
    assert_eq!(caps::PRIMARY_NMI_WINDOW, 1 << 22);
    assert_eq!(caps::PRIMARY_MTF, 1 << 27);
}

/// The register's highest bit is no part of the revision.
#[test]
fn the_revision_has_31_bits() {
    let raw = Raw {
        basic: 0xFFFF_FFFF,
        ..able()
    };
    assert_eq!(chosen(&raw, features()).revision, 0x7FFF_FFFF);
    assert!(caps::has_true_controls(1 << 55));
    assert!(!caps::has_true_controls(!(1 << 55)));
}

/// Each feature that CPUID shows enables its control and nothing else.
#[test]
fn each_feature_has_its_control() {
    type Set = fn(&mut GuestFeatures);
    let base = chosen(&able(), features());
    for (set, bit) in [
        ((|f| f.rdtscp = true) as Set, 3),
        (|f| f.invpcid = true, 12),
        (|f| f.xsaves = true, 20),
        (|f| f.waitpkg = true, 26),
        (|f| f.pconfig = true, 27),
    ] {
        let mut features = features();
        set(&mut features);
        let with = chosen(&able(), features);
        let expected = Controls {
            secondary: base.secondary | 1 << bit,
            ..base
        };
        assert_eq!(with, expected, "{bit}");
        // The processor has the feature and not the control: left out.
        let mut raw = able();
        raw.secondary &= !(1 << (32 + bit));
        assert_eq!(chosen(&raw, features), base, "{bit}");
    }
    let mut features = features();
    features.cet = true;
    let both = Controls {
        exit: base.exit | 1 << 28,
        entry: base.entry | 1 << 20,
        launch_entry: base.launch_entry | 1 << 20,
        cet: true,
        ..base
    };
    assert_eq!(chosen(&able(), features), both);
    // One direction alone is none.
    for (exit, entry) in [(true, false), (false, true)] {
        let mut raw = able();
        raw.exit &= !(u64::from(exit) << (32 + 28));
        raw.entry &= !(u64::from(entry) << (32 + 20));
        assert_eq!(chosen(&raw, features), base);
    }
}

#[test]
fn what_can_be_absent_is_told() {
    type Clear = fn(&mut Raw);
    type Tell = fn(&Controls) -> bool;
    for (clear, tell) in [
        (
            (|raw| raw.primary &= !(1 << (32 + 27))) as Clear,
            (|c| c.mtf) as Tell,
        ),
        (|raw| raw.secondary &= !(1 << (32 + 22)), |c| c.mbec),
        (|raw| raw.ept_vpid &= !(1 << 17), |c| c.ept_1g),
        (|raw| raw.ept_vpid &= !(1 << 22), |c| c.advanced_exit_info),
    ] {
        let mut raw = able();
        assert!(tell(&chosen(&raw, features())));
        clear(&mut raw);
        assert!(!tell(&chosen(&raw, features())));
    }
    for (no_mtf, no_mbec) in [(true, false), (false, true)] {
        let pretend = Pretend {
            no_mtf,
            no_mbec,
            ..Pretend::default()
        };
        let c = controls(&able(), features(), pretend).unwrap();
        assert_eq!((c.mtf, c.mbec), (!no_mtf, !no_mbec));
    }
}

/// Without any one of these there is no start.
#[test]
fn each_missing_need_is_refused() {
    type Word = fn(&mut Raw) -> &mut u64;
    let pin: Word = |raw| &mut raw.pin;
    let primary: Word = |raw| &mut raw.primary;
    let secondary: Word = |raw| &mut raw.secondary;
    let exit: Word = |raw| &mut raw.exit;
    let entry: Word = |raw| &mut raw.entry;
    let ept: Word = |raw| &mut raw.ept_vpid;
    let missing = StartError::MissingControl;
    for (word, bits, error) in [
        (pin, &[32 + 3, 32 + 5][..], missing),
        (primary, &[32 + 28], missing),
        (primary, &[32 + 31], StartError::NoEpt),
        (secondary, &[32 + 1], StartError::NoEpt),
        (secondary, &[32 + 5, 32 + 7], missing),
        (exit, &[34, 41, 50, 51, 52, 53], missing),
        (entry, &[34, 41, 46, 47], missing),
        (ept, &[6], StartError::NoFourLevelWalk),
        (ept, &[14], StartError::NoWriteBackTables),
        (ept, &[16], StartError::NoEpt),
        (ept, &[20, 25], StartError::NoInvept),
    ] {
        for &bit in bits {
            let mut raw = able();
            *word(&mut raw) &= !(1_u64 << bit);
            let refused = controls(&raw, features(), Pretend::default());
            assert_eq!(refused, Err(error), "bit {bit}");
        }
    }
}

/// A bit that must be 1 is kept if it is known, and refused if not.
#[test]
fn each_required_bit_is_known_or_refused() {
    type Word = fn(&mut Raw) -> &mut u64;
    type Chosen = fn(&Controls) -> u32;
    for (word, chosen, known) in [
        (
            (|raw| &mut raw.pin) as Word,
            (|c| c.pin) as Chosen,
            0x16 | 1 << 3 | 1 << 5,
        ),
        (
            |raw| &mut raw.primary,
            |c| c.primary,
            0x0401_E172 | 1 << 28 | 1 << 31,
        ),
        (
            |raw| &mut raw.secondary,
            |c| c.secondary,
            1 << 1 | 1 << 5 | 1 << 7 | 1 << 22,
        ),
        (
            |raw| &mut raw.exit,
            |c| c.exit,
            0x3_6DFF | 1 << 9 | 0b1111 << 18,
        ),
        (
            |raw| &mut raw.entry,
            |c| c.entry,
            0x11FF | 1 << 9 | 0b11 << 14,
        ),
    ] {
        for bit in 0..32 {
            let mut raw = able();
            *word(&mut raw) |= 1 << bit;
            let result = controls(&raw, features(), Pretend::default());
            if known >> bit & 1_u32 == 1 {
                assert_eq!(chosen(&result.unwrap()) >> bit & 1, 1, "{bit}");
            } else {
                assert_eq!(result, Err(StartError::UnknownRequiredControl), "{bit}");
            }
        }
    }
}
