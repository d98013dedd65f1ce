//! What the driver does with each call in each of its states.
//!
//! One table, [`decide`], for all pairs of state and call, and one function,
//! [`finished`], for how a start or stop ends. Pure values; the driver asks at
//! PASSIVE_LEVEL and keeps the state itself. It holds one lock through a whole
//! start or stop, so that there is at most one of them at a time; a call that
//! finds it held is judged by the state that it sees and is never kept waiting,
//! except for the end of the system or of the driver.
//!
//! A caller that goes away changes nothing but what it had parked: a start that
//! is under way goes on to its end, because half a start is no state.

use crate::wire::{StartError, State};

/// What reaches the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// START.
    Start,
    /// STOP.
    Stop,
    /// STATUS.
    Status,
    /// WAIT.
    Wait,
    /// EVIDENCE.
    Evidence,
    /// A parked WAIT is cancelled by its caller.
    Cancel,
    /// A caller's handle is closed, also because the caller died.
    Cleanup,
    /// The system goes down.
    Shutdown,
    /// The driver is to be unloaded; no handle is open.
    Unload,
}

impl Call {
    /// Every call.
    pub const ALL: [Call; 9] = [
        Call::Start,
        Call::Stop,
        Call::Status,
        Call::Wait,
        Call::Evidence,
        Call::Cancel,
        Call::Cleanup,
        Call::Shutdown,
        Call::Unload,
    ];
}

/// What is done about a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Enter this state, do the work, then enter what [`finished`] says.
    Begin(State),
    /// Refuse, and change nothing.
    Refuse(StartError),
    /// Answer at once from what there is.
    Answer,
    /// Answer at once if there is something new; else keep the request until
    /// there is, the state changes, or the caller gives up.
    Park,
    /// Complete this caller's parked requests as cancelled; nothing else.
    Release,
    /// Wait for the start or stop under way, then decide anew.
    Await,
    /// Nothing is left to be given back: go ahead, and free all.
    Free,
    /// Go ahead, but free nothing and keep the image where it is: a core still
    /// runs in it.
    Keep,
}

/// The action for a call in a state.
#[must_use]
pub const fn decide(state: State, call: Call) -> Action {
    use Action::{Answer, Await, Begin, Free, Keep, Park, Refuse, Release};
    use State::{Failed, Monitoring, Starting, Stopped, Stopping};
    match (call, state) {
        (Call::Start, Stopped) => Begin(Starting),
        (Call::Start, Monitoring) => Refuse(StartError::AlreadyStarted),
        (Call::Start | Call::Stop, Starting | Stopping) => Refuse(StartError::Busy),
        (Call::Start | Call::Stop, Failed) => Refuse(StartError::LeaveFailed),
        (Call::Stop, Stopped) => Refuse(StartError::NotStarted),
        (Call::Stop | Call::Shutdown | Call::Unload, Monitoring) => Begin(Stopping),
        // In the state Failed nothing will be found any more.
        (Call::Status | Call::Evidence, _) | (Call::Wait, Failed) => Answer,
        (Call::Wait, Stopped | Starting | Monitoring | Stopping) => Park,
        (Call::Cancel | Call::Cleanup, _) => Release,
        (Call::Shutdown | Call::Unload, Stopped) => Free,
        (Call::Shutdown | Call::Unload, Starting | Stopping) => Await,
        (Call::Shutdown | Call::Unload, Failed) => Keep,
    }
}

/// The state after the work of a transitional state has ended, well or not. In
/// any other state no work is under way, and it stays.
#[must_use]
pub const fn finished(state: State, well: bool) -> State {
    match (state, well) {
        (State::Starting, true) => State::Monitoring,
        // A start that fails has given back every core that it took.
        (State::Starting, false) | (State::Stopping, true) => State::Stopped,
        (State::Stopping, false) => State::Failed,
        (state, _) => state,
    }
}

#[cfg(test)]
mod tests;
