//! The guest's general registers between the stubs and the handlers, and the
//! handlers' word back.

/// General registers of the guest, as the exit stub saves them; RSP is in the
/// processor's control structure, and so is RAX on AMD until the handler fetches it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "the registers' names say it")]
pub struct GuestRegisters {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
}

const _: () = assert!(size_of::<GuestRegisters>() == 120);

/// Instructions of a stub: takes a [`GuestRegisters`] off the stack.
macro_rules! pop_all {
    () => {
        concat!(
            "pop r15\n",
            "pop r14\n",
            "pop r13\n",
            "pop r12\n",
            "pop rdi\n",
            "pop rsi\n",
            "pop rbp\n",
            "pop rbx\n",
            "pop r11\n",
            "pop r10\n",
            "pop r9\n",
            "pop r8\n",
            "pop rdx\n",
            "pop rcx\n",
            "pop rax",
        )
    };
}
pub(crate) use pop_all;

impl GuestRegisters {
    /// A general register by its number in an instruction's encoding; `rsp` is the
    /// guest's RSP.
    #[must_use]
    pub const fn general(&self, number: u8, rsp: u64) -> u64 {
        match number & 15 {
            0 => self.rax,
            1 => self.rcx,
            2 => self.rdx,
            3 => self.rbx,
            4 => rsp,
            5 => self.rbp,
            6 => self.rsi,
            7 => self.rdi,
            8 => self.r8,
            9 => self.r9,
            10 => self.r10,
            11 => self.r11,
            12 => self.r12,
            13 => self.r13,
            14 => self.r14,
            _ => self.r15,
        }
    }

    /// All of them, in the order of their numbers.
    #[must_use]
    #[inline]
    pub const fn in_order(&self, rsp: u64) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, rsp, self.rbp, self.rsi, self.rdi, self.r8,
            self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// EDX:EAX.
    #[must_use]
    pub const fn pair(&self) -> u64 {
        self.rax & 0xFFFF_FFFF | self.rdx << 32
    }

    /// Sets EDX:EAX; the upper halves become 0.
    pub const fn set_pair(&mut self, value: u64) {
        self.rax = value & 0xFFFF_FFFF;
        self.rdx = value >> 32;
    }
}

/// What the slow handler tells the stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Enter the guest again.
    Resume = 0,
    /// VMX operation is over; restore the guest's state.
    Leave = 1,
}
