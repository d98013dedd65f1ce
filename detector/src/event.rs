//! What root mode writes down.
//!
//! One [`Event`] is one fact, caught at one VM exit on one core: plain data of
//! fixed size that root mode stores into that core's ring without allocating or
//! formatting. The driver drains the rings at `PASSIVE_LEVEL` and hands the
//! events to `finding::Assembler`, which gives them names and numbers.
//!
//! The ring lies in memory that the guest can write, so a reader trusts no
//! field: every accessor is total, and an unknown kind is a value, not a panic.
//! No locking: a ring has one writer (its core, in root mode) and one reader.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of one event.
pub const EVENT_BYTES: usize = 512;

/// Value of [`Event::evidence`] when no page was kept.
pub const NO_EVIDENCE: u32 = u32::MAX;

/// Value of the module and section hints when the address lies in none.
pub const NO_INDEX: u16 = u16::MAX;

/// Bytes kept of a write's old and new contents.
pub const WRITE_BYTES: usize = 32;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $raw:literal, $text:literal, $severity:ident, $mitre:literal;)*) => {
        /// What a finding says happened.
        ///
        /// The numbers are part of the wire format and never reused.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $raw,)* }

        impl Kind {
            /// Every kind, in the order of its number.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The kind of a raw number, `None` for an unknown one.
            #[must_use]
            pub const fn from_raw(raw: u16) -> Option<Kind> {
                match raw { $($raw => Some(Kind::$name),)* _ => None }
            }

            /// The name on the wire and in JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }

            /// How grave it is when nothing more is known.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Kind::$name => Severity::$severity,)* }
            }

            /// The technique's number in MITRE ATT&CK (Enterprise).
            #[must_use]
            pub const fn mitre(self) -> &'static str {
                match self { $(Kind::$name => $mitre,)* }
            }
        }
    };
}

kinds! {
    /// Ring 0 executed code that lies in no loaded module.
    UnbackedExecution = 1, "unbacked-execution", Critical, "T1014";
    /// Code ran in a module's section that its file does not mark executable.
    NonexecSectionExecution = 2, "nonexec-section-execution", Critical, "T1014";
    /// Code ran in a section that was discarded after initialisation.
    DiscardedSectionExecution = 3, "discarded-section-execution", Critical, "T1014";
    /// The address is a module's, the frame behind it is not.
    RemappedExecution = 4, "remapped-execution", Critical, "T1014";
    /// Code of a module ran with other bytes than it was registered with.
    ModifiedCodeExecution = 5, "modified-code-execution", High, "T1014";
    /// Ring 0 executed a user-mode page.
    UserPageExecution = 6, "user-page-execution", Critical, "T1068";
    /// A module's code still runs though the system's list no longer shows it.
    HiddenModule = 7, "hidden-module", High, "T1014";
    /// Somebody wrote to executable code of a module.
    ModuleCodeWrite = 8, "module-code-write", High, "T1014";
    /// Somebody wrote to a module's read-only data (service or import tables).
    ReadonlyDataWrite = 9, "readonly-data-write", High, "T1014";
    /// An instruction wrote to the page that it lies in.
    SelfModifyingPage = 10, "self-modifying-page", Medium, "T1027";
    /// An instruction of VMX or SVM was attempted.
    VirtualizationAttempt = 11, "virtualization-attempt", Medium, "T1014";
    /// GDTR or IDTR was loaded.
    DescriptorTableChange = 12, "descriptor-table-change", Medium, "T1014";
    /// CR0.WP, CR4.SMEP, CR4.SMAP or CR4.VMXE changed.
    ControlRegisterChange = 13, "control-register-change", Medium, "T1068";
    /// A system-call or EFER MSR was written.
    MsrChange = 14, "msr-change", Medium, "T1014";
    /// Somebody reached for this driver or its pages.
    Tamper = 15, "tamper", High, "T1562.001";
}

/// How grave a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Severity {
    /// Worth knowing, harmless by itself.
    Info = 1,
    /// Unusual; legitimate software does it too.
    Medium = 2,
    /// What rootkits do and few others.
    High = 3,
    /// Foreign code in the kernel.
    Critical = 4,
}

impl Severity {
    /// The severity of a raw number; an unknown one counts as the gravest.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Severity {
        match raw {
            1 => Severity::Info,
            2 => Severity::Medium,
            3 => Severity::High,
            _ => Severity::Critical,
        }
    }

    /// The name on the wire and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

bitflags::bitflags! {
    /// Which fields of an [`Event`] hold something, and how they were obtained.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Flags: u32 {
        /// `gla` was reported by the processor.
        const GLA = 1 << 0;
        /// `return_address` was read from the stack.
        const RETURN_ADDRESS = 1 << 1;
        /// `gprs` holds the general-purpose registers.
        const GPRS = 1 << 2;
        /// `old` holds the first `min(write_length, 32)` bytes before the write.
        const OLD = 1 << 3;
        /// `new` holds them after it.
        const NEW = 1 << 4;
        /// The write was seen by stepping one instruction on the private path.
        const STEPPED = 1 << 5;
        /// The core ran 64-bit code (CS.L = 1).
        const LONG_MODE = 1 << 6;
        /// The page did so before monitoring began (seen at its first exit).
        const AT_START = 1 << 7;
        /// Belongs to a known benign class, which the finding names.
        const BENIGN_CLASS = 1 << 8;
        /// The victim's module was mapped: `victim_va` led to this very frame
        /// when the write was seen.
        const IN_PLACE = 1 << 9;
        /// `victim_va` holds something.
        const VICTIM_VA = 1 << 10;
    }
}

/// Index of RSP in [`Event::gprs`]; the order is RAX, RCX, RDX, RBX, RSP, RBP,
/// RSI, RDI, R8 … R15 (Intel SDM, "Basic Program Execution Registers", the
/// encoding order).
pub const GPR_RSP: usize = 4;

/// One fact from one VM exit; exactly [`EVENT_BYTES`] bytes, no padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Event {
    /// Number of this event on its core, from 1, without gaps.
    pub sequence: u64,
    /// Time-stamp counter at the exit.
    pub tsc: u64,
    /// Guest RIP.
    pub rip: u64,
    /// Linear address of the fault, if [`Flags::GLA`].
    pub gla: u64,
    /// Guest-physical address of the fault.
    pub gpa: u64,
    /// Guest CR3.
    pub cr3: u64,
    /// Guest RSP.
    pub rsp: u64,
    /// Guest RFLAGS.
    pub rflags: u64,
    /// The qword at RSP, if [`Flags::RETURN_ADDRESS`].
    pub return_address: u64,
    /// Process identifier, 0 if unknown.
    pub process: u64,
    /// The exit's qualification (Intel) or EXITINFO1 (AMD), as reported.
    pub qualification: u64,
    /// General-purpose registers, if [`Flags::GPRS`]; see [`GPR_RSP`].
    pub gprs: [u64; 16],
    /// Words from RSP upwards; `stack_words` of them hold something.
    pub stack: [u64; 16],
    /// Number of a [`Kind`].
    pub kind: u16,
    /// Number of a [`Severity`].
    pub severity: u8,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// Bits of [`Flags`].
    pub flags: u32,
    /// Index of the core.
    pub core: u32,
    /// How often it happened; at least 1.
    pub count: u32,
    /// Slot of the evidence page, or [`NO_EVIDENCE`].
    pub evidence: u32,
    /// Generation of the registry snapshot that gave the verdict.
    pub generation: u32,
    /// Offset of the first byte written, within its page (0 to 4095).
    pub write_offset: u32,
    /// Bytes written; 0 if unknown.
    pub write_length: u32,
    /// Registry index of the actor's module (by RIP), or [`NO_INDEX`].
    pub actor_module: u16,
    /// Registry index of the actor's section, or [`NO_INDEX`].
    pub actor_section: u16,
    /// Registry index of the victim's module (by frame), or [`NO_INDEX`].
    pub victim_module: u16,
    /// Registry index of the victim's section, or [`NO_INDEX`].
    pub victim_section: u16,
    /// Offset of the victim from its module's base, if it has a module.
    pub victim_rva: u32,
    /// Valid words of `stack`, at most 16.
    pub stack_words: u8,
    /// Valid bytes of `code`, at most 16.
    pub code_bytes: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Instruction bytes at RIP.
    pub code: [u8; 16],
    /// Bytes before the write, if [`Flags::OLD`].
    pub old: [u8; WRITE_BYTES],
    /// Bytes after the write, if [`Flags::NEW`].
    pub new: [u8; WRITE_BYTES],
    /// Where the victim's module has the bytes (linear), if
    /// [`Flags::VICTIM_VA`]; the writer may have used another address.
    pub victim_va: u64,
    /// Zero.
    pub reserved_tail: [u8; 32],
}

const _: () = assert!(size_of::<Event>() == EVENT_BYTES);

impl Event {
    /// An event of `kind` with its default severity, a count of one, no
    /// evidence and no module hints; all else is zero.
    #[must_use]
    pub fn new(kind: Kind) -> Event {
        let mut event: Event = zerocopy::FromZeros::new_zeroed();
        event.kind = kind as u16;
        event.severity = kind.severity() as u8;
        event.count = 1;
        event.evidence = NO_EVIDENCE;
        event.actor_module = NO_INDEX;
        event.actor_section = NO_INDEX;
        event.victim_module = NO_INDEX;
        event.victim_section = NO_INDEX;
        event
    }

    /// The kind, `None` if the number is unknown.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.kind)
    }

    /// The flags, unknown bits kept.
    #[must_use]
    pub const fn flags(&self) -> Flags {
        Flags::from_bits_retain(self.flags)
    }

    /// Adds flags.
    pub fn mark(&mut self, flags: Flags) {
        self.flags |= flags.bits();
    }

    /// Records a write of `length` bytes at `offset` in its page with what is
    /// known of the bytes; more than [`WRITE_BYTES`] are cut, the length is not.
    pub fn record_write(
        &mut self,
        offset: u32,
        length: u32,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) {
        self.write_offset = offset & 0xfff;
        self.write_length = length;
        if let Some(old) = old {
            copy_prefix(&mut self.old, old);
            self.mark(Flags::OLD);
        }
        if let Some(new) = new {
            copy_prefix(&mut self.new, new);
            self.mark(Flags::NEW);
        }
    }

    /// How many bytes of `old` and `new` mean something.
    #[must_use]
    pub fn write_bytes(&self) -> usize {
        usize::try_from(self.write_length).map_or(WRITE_BYTES, |n| n.min(WRITE_BYTES))
    }
}

fn copy_prefix(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_severities_are_frozen() {
        let table: std::vec::Vec<_> = Kind::ALL
            .iter()
            .map(|k| (*k as u16, k.as_str(), k.severity().as_str()))
            .collect();
        assert_eq!(
            table,
            [
                (1, "unbacked-execution", "critical"),
                (2, "nonexec-section-execution", "critical"),
                (3, "discarded-section-execution", "critical"),
                (4, "remapped-execution", "critical"),
                (5, "modified-code-execution", "high"),
                (6, "user-page-execution", "critical"),
                (7, "hidden-module", "high"),
                (8, "module-code-write", "high"),
                (9, "readonly-data-write", "high"),
                (10, "self-modifying-page", "medium"),
                (11, "virtualization-attempt", "medium"),
                (12, "descriptor-table-change", "medium"),
                (13, "control-register-change", "medium"),
                (14, "msr-change", "medium"),
                (15, "tamper", "high"),
            ]
        );
        for kind in Kind::ALL {
            assert_eq!(Kind::from_raw(*kind as u16), Some(*kind));
            assert!(kind.mitre().starts_with('T'));
        }
        assert_eq!(Kind::from_raw(0), None);
        assert_eq!(Kind::from_raw(16), None);
    }

    #[test]
    fn an_unknown_severity_is_the_gravest() {
        for (raw, name) in [
            (0, "critical"),
            (1, "info"),
            (2, "medium"),
            (3, "high"),
            (4, "critical"),
            (5, "critical"),
        ] {
            assert_eq!(Severity::from_raw(raw).as_str(), name);
        }
    }

    #[test]
    fn any_bytes_are_an_event_that_can_be_read() {
        let event = Event::read_from_bytes(&[0xff; EVENT_BYTES]).unwrap();
        assert_eq!(event.kind(), None);
        assert_eq!(event.write_bytes(), WRITE_BYTES);
        assert!(event.flags().contains(Flags::OLD));
        assert_eq!(Severity::from_raw(event.severity), Severity::Critical);
    }

    #[test]
    fn a_write_is_cut_to_what_fits() {
        let mut event = Event::new(Kind::ModuleCodeWrite);
        event.record_write(0x1fff, 40, Some(&[1; 40]), None);
        assert_eq!((event.write_offset, event.write_length), (0xfff, 40));
        assert_eq!(event.old, [1; WRITE_BYTES]);
        assert_eq!(event.flags(), Flags::OLD);
    }
}
