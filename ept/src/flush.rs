//! What the cores must do after a change of the tables.
//!
//! A processor may keep a translation for as long as it likes until it is told
//! to drop it (Intel SDM volume 3, "Caching Translation Information"; AMD APM
//! volume 2, "TLB Management"). Every function that changes an entry returns
//! this token, so that no change can be made and its flush be forgotten.
//!
//! A plain value; who receives one in root mode carries it out before the
//! change is counted on.

use core::ops::{BitOr, BitOrAssign};

/// What a change asks of the cores. Ordered: the larger covers the smaller.
#[must_use = "a core may go on using the old translation until this is carried out"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flush {
    /// Nothing that a processor caches has changed.
    #[default]
    None,
    /// Rights were added or a missing entry was filled. Nothing to do: the
    /// violation drops the old translation on the core that took it.
    Relaxed,
    /// Rights were removed, a frame or memory type changed, or a large leaf was
    /// replaced: every core must invalidate and acknowledge before the change
    /// may be counted on.
    Revoked,
}

impl Flush {
    /// Whether every core must invalidate and acknowledge.
    #[must_use]
    pub const fn needs_acknowledgement(self) -> bool {
        matches!(self, Self::Revoked)
    }
}

impl BitOr for Flush {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.max(other)
    }
}

impl BitOrAssign for Flush {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

#[cfg(test)]
mod tests {
    use super::Flush::{None, Relaxed, Revoked};

    #[test]
    fn the_stricter_wins() {
        for (a, b, both) in [
            (None, None, None),
            (None, Relaxed, Relaxed),
            (Relaxed, Revoked, Revoked),
            (Revoked, None, Revoked),
        ] {
            assert_eq!(a | b, both);
            assert_eq!(b | a, both);
        }
        assert!(Revoked.needs_acknowledgement());
        assert!(!Relaxed.needs_acknowledgement());
    }
}
