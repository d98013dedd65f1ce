//! What a `with_caller!` stub hands over: the caller's return address and its
//! arguments.

/// The stack of a call, from the return address upward.
#[repr(C)]
#[derive(Debug)]
pub struct Call {
    /// Where the caller goes on.
    pub return_address: usize,
    arguments: [usize; 8],
}

impl Call {
    /// The whole argument number `N`, from 0. Only as many exist as the routine has.
    pub fn word<const N: usize>(&self) -> usize {
        self.arguments[N]
    }

    /// An argument of 32 bits; the upper half of its slot is undefined.
    pub fn long<const N: usize>(&self) -> u32 {
        self.arguments[N] as u32
    }

    /// An argument of 8 bits.
    pub fn byte<const N: usize>(&self) -> u8 {
        self.arguments[N] as u8
    }
}
