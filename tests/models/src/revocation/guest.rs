//! What runs in the guest, and how the processor translates for it.

use crate::atomics::{Ordering, wait};
use crate::revocation::exits;
use crate::revocation::instr;
use crate::revocation::percpu::Core;

/// Rights of a page, by the hypervisor's states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Rights {
    /// RW-.
    #[default]
    Writable = 0,
    /// R-X.
    Executable = 1,
    /// R--.
    Stepping = 2,
    /// RWX: on a private path only.
    Both = 3,
}

impl Rights {
    /// The rights in an entry.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        [Self::Writable, Self::Executable, Self::Stepping, Self::Both][usize::from(bits)]
    }

    fn permit(self, use_of: Use) -> bool {
        match use_of {
            Use::Write => matches!(self, Self::Writable | Self::Both),
            Use::Fetch => matches!(self, Self::Executable | Self::Both),
        }
    }
}

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A data write.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// One instruction, or event, of a core's program.
#[derive(Clone, Copy, Debug)]
pub enum Instruction {
    /// Writes a page.
    Write(usize),
    /// Is fetched from a page.
    Fetch(usize),
    /// Is fetched from a page and writes it.
    SelfWrite(usize),
    /// Is fetched from the first page, and writes it and the second.
    SelfWriteAnd(usize, usize),
    /// Exits for a reason that concerns nobody else.
    Exit,
    /// Computes for as long as any core does something else.
    Idle,
    /// INIT arrives: the core waits for SIPI.
    Init,
    /// A [`Self::SelfWrite`] that INIT strikes while it is stepped over.
    Struck(usize),
    /// SIPI arrives.
    Sipi,
    /// The core becomes a guest.
    Join,
    /// The core is given back.
    Leave,
}

/// An access that was refused.
struct Refused {
    page: usize,
    use_of: Use,
}

/// Runs the program of a core to its end.
pub fn run(core: &Core, program: &[Instruction]) {
    instr::run_as(core);
    let busy = &core.hypervisor().busy;
    for &instruction in program {
        match instruction {
            Instruction::Exit => exits::nothing(core),
            Instruction::Idle => {
                busy.fetch_sub(1, Ordering::AcqRel);
                while busy.load(Ordering::Acquire) > 0 {
                    wait();
                    exits::guest_nmi(core);
                }
                busy.fetch_add(1, Ordering::AcqRel);
            }
            Instruction::Init => exits::init(core),
            Instruction::Struck(page) => {
                while core.state.step.count.get() == 0 {
                    attempt(core, Instruction::SelfWrite(page));
                }
                exits::init(core);
            }
            Instruction::Sipi => exits::sipi(core),
            Instruction::Join => exits::join(core),
            Instruction::Leave => exits::leave(core),
            _ => retire(core, instruction),
        }
    }
    busy.fetch_sub(1, Ordering::AcqRel);
}

/// Tries the instruction until it has retired.
fn retire(core: &Core, instruction: Instruction) {
    while !attempt(core, instruction) {}
    exits::retired(core);
}

/// Tries the instruction once; a violation is answered.
fn attempt(core: &Core, instruction: Instruction) -> bool {
    // An NMI is taken between two instructions.
    exits::guest_nmi(core);
    let Err(Refused { page, use_of }) = execute(core, instruction) else {
        return true;
    };
    let own = match instruction {
        Instruction::SelfWrite(own) | Instruction::SelfWriteAnd(own, _) => own == page,
        _ => false,
    };
    exits::violation(core, page, use_of, own);
    false
}

fn execute(core: &Core, instruction: Instruction) -> Result<(), Refused> {
    match instruction {
        Instruction::Write(page) => access(core, page, Use::Write, true),
        Instruction::Fetch(page) => access(core, page, Use::Fetch, true),
        Instruction::SelfWrite(page) => {
            access(core, page, Use::Fetch, false)?;
            access(core, page, Use::Write, false)?;
            access(core, page, Use::Fetch, true)?;
            access(core, page, Use::Write, true)
        }
        Instruction::SelfWriteAnd(page, other) => {
            access(core, page, Use::Fetch, false)?;
            access(core, page, Use::Write, false)?;
            access(core, other, Use::Write, false)?;
            access(core, page, Use::Fetch, true)?;
            access(core, page, Use::Write, true)?;
            access(core, other, Use::Write, true)
        }
        _ => Ok(()),
    }
}

/// Translates as the processor may: a cached translation is used for as long as
/// there is one. `carry_out` is false for the check before an instruction that
/// needs several rights.
fn access(core: &Core, page: usize, use_of: Use, carry_out: bool) -> Result<(), Refused> {
    let hardware = &core.hardware;
    let memory = &core.hypervisor().pages[page];
    let private = hardware.on_private.get();
    let cache = if private {
        &hardware.private_cache
    } else {
        &hardware.shared_cache
    };
    let mut cached = cache.get();
    let rights = *cached[page].get_or_insert_with(|| {
        if private {
            hardware.private.get()[page]
        } else {
            memory.rights()
        }
    });
    if !rights.permit(use_of) {
        // A violation drops what was cached for the address.
        cached[page] = None;
        cache.set(cached);
        return Err(Refused { page, use_of });
    }
    cache.set(cached);
    if carry_out {
        match use_of {
            Use::Write => memory.write(),
            Use::Fetch => memory.fetch(),
        }
    }
    Ok(())
}

/// Whether an NMI has arrived and is taken now.
#[must_use]
pub fn takes_nmi(core: &Core) -> bool {
    let hypervisor = core.hypervisor();
    if hypervisor.may_be_late && hypervisor.late.load(Ordering::Acquire) {
        return false;
    }
    let latch = &core.hardware.nmi;
    latch.load(Ordering::Acquire) && latch.swap(false, Ordering::AcqRel)
}
