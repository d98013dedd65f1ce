//! Standard output: flushed after each item, coloured only where wanted.

use crate::args::Color;
use detector::event::Severity;
use std::io::{self, IsTerminal, Write};

/// Where data goes.
pub(crate) struct Output {
    /// Paint text.
    pub(crate) paint: Paint,
    stdout: io::Stdout,
}

impl Output {
    pub(crate) fn new(color: Color) -> Output {
        let on = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
                io::stdout().is_terminal() && !unwanted
            }
        };
        Output {
            paint: Paint(on),
            stdout: io::stdout(),
        }
    }

    /// Prints text, which has its own line ends, and flushes it: the reader of a
    /// pipe sees each finding at once.
    pub(crate) fn print(&self, text: &str) -> io::Result<()> {
        let mut stdout = self.stdout.lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

/// Colours, or none.
#[derive(Clone, Copy)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// In the colour of a severity.
    pub(crate) fn severity(self, text: &str) -> String {
        let code = if text == Severity::Critical.as_str() {
            "1;31"
        } else if text == Severity::High.as_str() {
            "31"
        } else if text == Severity::Medium.as_str() {
            "33"
        } else {
            "36"
        };
        self.with(code, text)
    }

    /// A heading.
    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What matters less.
    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }
}
