//! I/O queues: the state machine ([`state`]) and what brings it to life.

pub(crate) mod state;

#[cfg(not(test))]
mod functions;
#[cfg(not(test))]
mod hand_over;
#[cfg(not(test))]
mod instance;

#[cfg(not(test))]
pub(crate) use functions::*;
#[cfg(not(test))]
pub(crate) use hand_over::start as start_handing_over;
#[cfg(not(test))]
pub(crate) use instance::{
    Queue, arrive, cancel_of_file, dispatch, dispose, forward, refuse_and_cancel, released,
};
