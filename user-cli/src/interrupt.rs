//! When to stop waiting: Ctrl-C, a termination signal, or a deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a wait looks up.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Asks to be told of Ctrl-C and termination signals instead of dying.
pub(crate) fn install() {
    // Without a handler Ctrl-C ends the program at once: less clean, not wrong.
    let _ = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed));
}

/// The user asked to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    deadline: Option<Instant>,
    interruptible: bool,
}

impl Until {
    /// Until interrupted, or at most so long. A span that the clock cannot
    /// express is for ever.
    pub(crate) fn within(span: Option<Duration>) -> Until {
        Until {
            deadline: span.and_then(|span| Instant::now().checked_add(span)),
            interruptible: true,
        }
    }

    /// At most so long, whatever the user does: for what must be finished.
    pub(crate) fn in_any_case(span: Duration) -> Until {
        Until {
            interruptible: false,
            ..Until::within(Some(span))
        }
    }

    /// It is time to stop.
    pub(crate) fn over(self) -> bool {
        let late = self.deadline.is_some_and(|d| Instant::now() >= d);
        late || (self.interruptible && interrupted())
    }
}
