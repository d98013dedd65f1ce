//! Nested page faults: what the error code in EXITINFO1 tells.
//!
//! The address in EXITINFO2 is guest-physical; the linear one is not told. Pure.
//! AMD APM vol. 2, "Nested versus Guest Page Faults, Fault Ordering".

/// A nested page fault's error code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts of one access"
)]
pub struct Npf {
    /// The leaf was there; a right was missing, or a reserved bit was set.
    pub present: bool,
    /// Data read.
    pub read: bool,
    /// Data write. Walks of the guest's tables are writes, whether they would set
    /// an accessed or dirty bit or not, unless such tables may be read-only.
    pub write: bool,
    /// Instruction fetch.
    pub fetch: bool,
    /// The access was made with user rights. All are, but with the guest mode
    /// execute trap those of the guest's supervisor are not; as some processors
    /// err there, the guest's privilege level is the better witness (AMD APM
    /// vol. 2, "Guest Mode Execute Trap Extension"): see
    /// [`Self::is_users`].
    pub user: bool,
    /// A reserved bit was set in an entry: the tables are broken.
    pub reserved: bool,
    /// A shadow-stack access.
    pub shadow_stack: bool,
    /// An access to the guest's page tables during a walk.
    pub page_walk: bool,
    /// The reverse map table forbids the access.
    pub reverse_map: bool,
}

impl Npf {
    /// With the guest mode execute trap: whether a leaf that was there refused an
    /// access with user rights, made at privilege level `cpl`.
    ///
    /// A fetch has the rights of its privilege level, whatever the linear address.
    /// A walk of the guest's tables is the user's at any level. For data the
    /// processor's word is taken as well: a page refuses the supervisor no data
    /// that its other bits allow, so too much said does no harm where this is asked.
    #[must_use]
    pub const fn is_users(self, cpl: u8) -> bool {
        self.present && (self.page_walk || cpl == 3 || self.user && !self.fetch)
    }
}

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const RESERVED: u64 = 1 << 3;
const FETCH: u64 = 1 << 4;
const SHADOW_STACK: u64 = 1 << 6;
const REVERSE_MAP: u64 = 1 << 31;
const PAGE_WALK: u64 = 1 << 33;

/// Decodes EXITINFO1 of a nested page fault.
#[must_use]
pub const fn decode(exit_info1: u64) -> Npf {
    Npf {
        present: exit_info1 & PRESENT != 0,
        read: exit_info1 & (WRITE | FETCH) == 0,
        write: exit_info1 & WRITE != 0,
        fetch: exit_info1 & FETCH != 0,
        user: exit_info1 & USER != 0,
        reserved: exit_info1 & RESERVED != 0,
        shadow_stack: exit_info1 & SHADOW_STACK != 0,
        page_walk: exit_info1 & PAGE_WALK != 0,
        reverse_map: exit_info1 & REVERSE_MAP != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Npf = Npf {
        present: true,
        read: false,
        write: false,
        fetch: false,
        user: true,
        reserved: false,
        shadow_stack: false,
        page_walk: false,
        reverse_map: false,
    };

    /// The codes that emulators were seen to give.
    #[test]
    fn codes_as_they_were_seen() {
        for (code, wanted) in [
            // A write of a read-only page.
            (
                0x1_0000_0007,
                Npf {
                    write: true,
                    ..NONE
                },
            ),
            // A fetch from a page that is not executable.
            (
                0x1_0000_0015,
                Npf {
                    fetch: true,
                    ..NONE
                },
            ),
            // A read of an absent page.
            (
                0x1_0000_0004,
                Npf {
                    present: false,
                    read: true,
                    ..NONE
                },
            ),
            // A read of a leaf with U = 0.
            (0x1_0000_0005, Npf { read: true, ..NONE }),
            // A walk of the guest's tables on a read-only page.
            (
                0x2_0000_0007,
                Npf {
                    write: true,
                    page_walk: true,
                    ..NONE
                },
            ),
        ] {
            assert_eq!(decode(code), wanted, "{code:#x}");
        }
    }

    #[test]
    fn every_bit_means_one_thing() {
        let nothing = Npf {
            read: true,
            ..Npf::default()
        };
        assert_eq!(decode(0), nothing);
        for bit in 0..64 {
            let found = decode(1 << bit);
            let wanted = match bit {
                0 => Npf {
                    present: true,
                    ..nothing
                },
                1 => Npf {
                    write: true,
                    read: false,
                    ..nothing
                },
                2 => Npf {
                    user: true,
                    ..nothing
                },
                3 => Npf {
                    reserved: true,
                    ..nothing
                },
                4 => Npf {
                    fetch: true,
                    read: false,
                    ..nothing
                },
                6 => Npf {
                    shadow_stack: true,
                    ..nothing
                },
                31 => Npf {
                    reverse_map: true,
                    ..nothing
                },
                33 => Npf {
                    page_walk: true,
                    ..nothing
                },
                _ => nothing,
            };
            assert_eq!(found, wanted, "bit {bit}");
        }
    }
}
