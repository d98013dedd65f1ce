//! What an emulator can be asked from outside, in one place: whoever needs one of
//! these asks [`Emulator::offers`] and goes without where the answer is no.
//!
//! | question | our Bochs | Bochs 2.7 | QEMU |
//! |---|---|---|---|
//! | the witness: all of memory with each processor's nested tables | yes | | no[^1] |
//! | exact counts: instructions, exits by code, marks, `bench`, profile | yes | | |
//! | retired instructions by frame ("before the first instruction") | yes | | |
//! | registers of every processor, for a hang report | yes | | yes |
//! | MiniNT's exit code | yes | | yes |
//! | a hypervisor bit in CPUID that a test sets | yes | | |
//! | `VM_CR` keeps what firmware writes (`svm=disabled`, `svm=locked`) | yes | | reads 0 |
//! | INIT can be intercepted: a processor is restarted below the hypervisor | yes | | resets at once |
//! | an injected NMI is masked until IRET; EXITINTINFO has the right type | patched | | no |
//! | INT1 exists; MOV to CR4 with a reserved bit is #GP | yes | yes | #UD; a #VMEXIT without a guest: it hangs[^3] |
//! | what one processor writes into code, another executes at once | yes | yes | a stale translation may stay[^2] |
//! | two runs are the same | yes | yes | no: one thread a processor, true races |
//!
//! [^1]: the VMCB of the last VMRUN is in no answer of QEMU's monitor.
//! [^2]: a store drops the translations of its page before it is made, and another
//! thread may translate the old bytes in between. Specimens that need it say
//! `"not_on": ["qemu"]`. So do those that look at an emulator's order of checks
//! (VMRUN with a bad address in RAX is #GP before it is an exit) or at an instruction
//! that faults after half its work (BTS and CMPXCHG16B restart with other flags).
//! [^3]: so `instructions`, `control-register-sweep` and `event-delivery` are Bochs's alone.

use super::options::Emulator;

/// A question that not every emulator answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The whole state of the machine, for the witness.
    Checkpoint,
    /// Exact counts of instructions and exits, by processor and by frame.
    Counts,
    /// `VM_CR` keeps what firmware writes.
    VmCr,
}

impl Emulator {
    /// Whether it answers.
    pub(crate) const fn offers(self, look: Look) -> bool {
        match (self, look) {
            (Self::Bochs, _) | (Self::Bochs2, Look::VmCr) => true,
            (Self::Bochs2 | Self::Qemu, _) => false,
        }
    }

    /// The code that the emulator's process ends with when MiniNT ends with `code`;
    /// `None` where it always ends in the same way.
    pub(crate) const fn exit_code(self, code: i32) -> Option<i32> {
        match self {
            Self::Bochs => Some(code),
            // Of isa-debug-exit.
            Self::Qemu => Some(((code << 1) | 1) & 0xFF),
            Self::Bochs2 => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_build_shows_everything() {
        for look in [Look::Checkpoint, Look::Counts, Look::VmCr] {
            assert!(Emulator::Bochs.offers(look), "{look:?}");
        }
        assert!(!Emulator::Qemu.offers(Look::Checkpoint));
        assert!(!Emulator::Qemu.offers(Look::VmCr));
        assert!(!Emulator::Bochs2.offers(Look::Counts));
    }

    #[test]
    fn qemu_shifts_the_exit_code() {
        assert_eq!(Emulator::Qemu.exit_code(0), Some(1));
        assert_eq!(Emulator::Qemu.exit_code(0xBC), Some(0x79));
        assert_eq!(Emulator::Bochs.exit_code(0xBC), Some(0xBC));
        assert_eq!(Emulator::Bochs2.exit_code(0), None);
    }
}
