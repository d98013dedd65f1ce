//! XSETBV: the faults that do not depend on the value.
//!
//! The value itself is judged by the processor, which executes the instruction in
//! root mode with a fix-up: it knows which state components it has. Pure. Intel
//! SDM vol. 2, "XSETBV—Set Extended Control Register".

/// What to do with an XSETBV that exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Execute it; a fault becomes the guest's #GP.
    Execute,
    /// #UD.
    Undefined,
    /// #GP(0).
    GeneralProtection,
}

/// Judges an XSETBV by the guest's CR4, its privilege level and ECX.
#[must_use]
pub const fn judge(cr4: u64, cpl: u8, index: u32) -> Answer {
    if cr4 & 1 << 18 == 0 {
        Answer::Undefined
    } else if cpl != 0 || index != 0 {
        Answer::GeneralProtection
    } else {
        Answer::Execute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_in_the_manual_s_order() {
        let on = 1 << 18;
        assert_eq!(judge(0, 3, 5), Answer::Undefined);
        assert_eq!(judge(on, 3, 0), Answer::GeneralProtection);
        assert_eq!(judge(on, 0, 1), Answer::GeneralProtection);
        assert_eq!(judge(on, 0, 0), Answer::Execute);
    }
}
