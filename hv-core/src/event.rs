//! Events on their way into the guest: what an exit interrupted, and what the
//! hypervisor raises itself.
//!
//! An exit during the delivery of an event loses that event unless the next entry
//! delivers it again. W xor X makes such exits common (a stack page or a handler's
//! page changes its role), so every exit ends in [`plan`]. Pure; Intel SDM vol. 3,
//! "Information for VM Exits During Event Delivery" and "VM-Entry Controls for
//! Event Injection".

const VALID: u64 = 1 << 31;
const HAS_ERROR_CODE: u64 = 1 << 11;

/// Type of an event, as in the interruption-information fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the manual's names")]
pub enum Type {
    External = 0,
    Nmi = 2,
    HardwareException = 3,
    SoftwareInterrupt = 4,
    PrivilegedSoftwareException = 5,
    SoftwareException = 6,
}

/// An event to be delivered at the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    info: u64,
    error_code: u64,
}

impl Event {
    /// #DF with error code 0.
    pub const DOUBLE_FAULT: Self = Self {
        info: VALID | HAS_ERROR_CODE | 3 << 8 | 8,
        error_code: 0,
    };
    /// #DB.
    pub const DEBUG: Self = Self {
        info: VALID | 3 << 8 | 1,
        error_code: 0,
    };
    /// #UD.
    pub const UNDEFINED: Self = Self {
        info: VALID | 3 << 8 | 6,
        error_code: 0,
    };
    /// #GP with error code 0.
    pub const GENERAL_PROTECTION: Self = Self {
        info: VALID | HAS_ERROR_CODE | 3 << 8 | 0xD,
        error_code: 0,
    };
    /// #SX, INIT redirected.
    pub const SECURITY: Self = Self {
        info: VALID | HAS_ERROR_CODE | 3 << 8 | 0x1E,
        error_code: 1,
    };
    /// #MC.
    pub const MACHINE_CHECK: Self = Self {
        info: VALID | 3 << 8 | 0x12,
        error_code: 0,
    };
    /// An NMI.
    pub const NMI: Self = Self {
        info: VALID | 2 << 8 | 2,
        error_code: 0,
    };

    /// The exception that an exit reports instead of delivering it, to be
    /// delivered after all.
    #[must_use]
    pub const fn again(information: u64, error_code: u64) -> Self {
        // Bit 12 tells of IRET and must be 0 at the entry.
        Self {
            info: information & (VALID | 0xFFF),
            error_code,
        }
    }

    /// An exception of the processor's; `error_code` counts where the vector has one.
    #[must_use]
    pub const fn exception(vector: u8, error_code: u64) -> Self {
        let code = if matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30) {
            HAS_ERROR_CODE
        } else {
            0
        };
        Self {
            info: VALID | code | 3 << 8 | vector as u64,
            error_code,
        }
    }

    /// The VM-entry interruption-information field.
    #[must_use]
    pub const fn info(self) -> u64 {
        self.info
    }

    /// The VM-entry exception error code, when there is one.
    #[must_use]
    pub const fn error_code(self) -> Option<u64> {
        if self.info & HAS_ERROR_CODE != 0 {
            Some(self.error_code)
        } else {
            None
        }
    }

    /// Whether the entry needs an instruction length: software interrupts and
    /// software exceptions.
    #[must_use]
    pub const fn needs_length(self) -> bool {
        matches!(self.info >> 8 & 7, 4..=6)
    }

    /// Whether it is a fault: an exception before the instruction, with RFLAGS.RF
    /// set on its stack (Intel SDM vol. 3, "Exception Classifications"). Of the
    /// hardware exceptions #DB, #BP, #OF and #MC are none here.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        self.info >> 8 & 7 == 3 && !matches!(self.info & 0xFF, 1 | 3 | 4 | 0x12)
    }

    /// Whether it is an NMI.
    #[must_use]
    pub const fn is_nmi(self) -> bool {
        self.info >> 8 & 7 == 2
    }
}

/// What the processor says about the event whose delivery the exit interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interrupted {
    /// IDT-vectoring information field.
    pub info: u64,
    /// IDT-vectoring error code.
    pub error_code: u64,
}

/// How the guest may be interrupted, and what is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// What was interrupted.
    pub interrupted: Interrupted,
    /// What the handler of this exit raises.
    pub raised: Option<RaisedEvent>,
    /// Interruptibility state of the guest.
    pub blocking: u64,
    /// The exit qualification says that an IRET has unblocked NMIs (bit 12) on
    /// an exit that defines the bit.
    pub unblocked_by_iret: bool,
    /// NMIs of the guest that wait.
    pub nmis: u32,
    /// A step is under way: no NMI is to be delivered into it.
    pub stepping: bool,
}

/// An exception that the hypervisor raises in the guest.
pub type RaisedEvent = Event;

/// What to do before the entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plan {
    /// The event to deliver.
    pub inject: Option<Event>,
    /// The delivery repeats one that was interrupted.
    pub repeated: bool,
    /// One waiting NMI is delivered.
    pub nmi_taken: bool,
    /// Exit when the next NMI can be taken.
    pub nmi_window: bool,
    /// Set or clear blocking by NMI.
    pub nmi_blocking: Option<bool>,
}

const BLOCKED_STI_OR_MOV_SS: u64 = 3;
const BLOCKED_NMI: u64 = 1 << 3;

/// Decides what the next entry delivers.
#[must_use]
pub fn plan(facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    let interrupted = facts.interrupted.info & VALID != 0;
    if interrupted {
        let event = Event::again(facts.interrupted.info, facts.interrupted.error_code);
        plan.inject = Some(match facts.raised {
            // An exception of ours while another event was being delivered: the
            // interrupted one comes first if it is no exception; two exceptions
            // make a double fault (Intel SDM vol. 3, "Conditions for Generating
            // a Double Fault"; ours are of the contributory class or worse).
            Some(_) if event.info >> 8 & 7 == Type::HardwareException as u64 => Event::DOUBLE_FAULT,
            _ => event,
        });
        plan.repeated = facts.raised.is_none();
        if event.is_nmi() {
            plan.nmi_blocking = Some(false);
        }
    } else {
        plan.inject = facts.raised;
        if facts.unblocked_by_iret {
            plan.nmi_blocking = Some(true);
        }
    }
    if facts.nmis > 0 {
        let blocked = facts.blocking & (BLOCKED_STI_OR_MOV_SS | BLOCKED_NMI) != 0
            || plan.nmi_blocking == Some(true);
        if plan.inject.is_none() && !blocked && !facts.stepping {
            plan.inject = Some(Event::NMI);
            plan.nmi_taken = true;
        }
        let left = facts.nmis - u32::from(plan.nmi_taken);
        plan.nmi_window = left > 0 && !facts.stepping;
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interrupted(kind: u64, vector: u64) -> Facts {
        Facts {
            interrupted: Interrupted {
                info: VALID | 1 << 12 | kind << 8 | vector,
                error_code: 0,
            },
            ..Facts::default()
        }
    }

    #[test]
    fn every_interrupted_event_is_delivered_again() {
        for (kind, vector, length) in [
            (0, 0xD1, false),
            (2, 2, false),
            (3, 14, false),
            (4, 0x2E, true),
            (5, 1, true),
            (6, 3, true),
        ] {
            let plan = plan(&interrupted(kind, vector));
            let event = plan.inject.unwrap();
            assert!(plan.repeated);
            assert_eq!(
                event.info(),
                VALID | kind << 8 | vector,
                "bit 12 is cleared"
            );
            assert_eq!(event.needs_length(), length);
        }
    }

    #[test]
    fn a_repeated_nmi_needs_unblocked_nmis() {
        let facts = Facts {
            blocking: BLOCKED_NMI,
            ..interrupted(2, 2)
        };
        assert_eq!(plan(&facts).nmi_blocking, Some(false));
    }

    #[test]
    fn an_iret_that_exits_leaves_nmis_blocked() {
        let facts = Facts {
            unblocked_by_iret: true,
            nmis: 1,
            ..Facts::default()
        };
        let plan = plan(&facts);
        assert_eq!(plan.nmi_blocking, Some(true));
        assert!(!plan.nmi_taken && plan.nmi_window);
        let facts = Facts {
            unblocked_by_iret: true,
            ..interrupted(0, 0xD1)
        };
        assert_eq!(
            super::plan(&facts).nmi_blocking,
            None,
            "undefined while an event is interrupted"
        );
    }

    #[test]
    fn a_waiting_nmi_is_delivered_once_and_only_when_it_may() {
        let free = Facts {
            nmis: 2,
            ..Facts::default()
        };
        let plan = super::plan(&free);
        assert_eq!(plan.inject, Some(Event::NMI));
        assert!(plan.nmi_taken && plan.nmi_window, "one more waits");
        for blocking in [1, 2, 8] {
            let plan = super::plan(&Facts { blocking, ..free });
            assert!(plan.inject.is_none() && !plan.nmi_taken && plan.nmi_window);
        }
        let plan = super::plan(&Facts {
            nmis: 1,
            ..interrupted(3, 14)
        });
        assert!(!plan.nmi_taken && plan.nmi_window);
    }

    #[test]
    fn nothing_is_delivered_into_a_step() {
        let plan = plan(&Facts {
            nmis: 1,
            stepping: true,
            ..Facts::default()
        });
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn two_exceptions_make_a_double_fault() {
        let facts = Facts {
            raised: Some(Event::GENERAL_PROTECTION),
            ..interrupted(3, 14)
        };
        assert_eq!(plan(&facts).inject, Some(Event::DOUBLE_FAULT));
        let facts = Facts {
            raised: Some(Event::GENERAL_PROTECTION),
            ..interrupted(0, 0xD1)
        };
        assert_eq!(
            plan(&facts).inject.unwrap().info() & 0xFF,
            0xD1,
            "the interrupt comes first; the instruction faults again"
        );
    }
}
