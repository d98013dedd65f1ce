//! The command line.

use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 other, 2 usage, 3 not elevated, 4 driver absent, \
5 machine unfit, 6 version mismatch, 10 findings (with --exit-code).";

/// Catches kernel code that no driver file brought, and changes to code that one did.
#[derive(Parser, Debug)]
#[command(name = "hvdetect", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Print JSON (one object a line) instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// When to colour
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub(crate) color: Color,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Take the running system under observation
    Start(Start),
    /// Give the machine back as it was
    Stop,
    /// Show what is monitored and what it costs
    Status {
        /// Exit with 10 if there are findings
        #[arg(long)]
        exit_code: bool,
    },
    /// Print findings as they come, and append them to the log
    Watch(Watch),
    /// Print the findings in the log
    Log {
        /// The log file [default: see `hvdetect watch --help`]
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
        /// Exit with 10 if there are findings
        #[arg(long)]
        exit_code: bool,
    },
    /// Show one finding in full, with disassembly and its page
    Show(Show),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub(crate) struct Start {
    /// Pretend that the processor has no monitor trap flag
    #[arg(long, hide = true)]
    pub(crate) no_mtf: bool,
    /// Pretend that the processor has no mode-based execute control (Intel) and no guest mode
    /// execute trap (AMD)
    #[arg(long, hide = true)]
    pub(crate) no_mbec: bool,
    /// Pretend that the processor does not save the next instruction's address
    #[arg(long, hide = true)]
    pub(crate) no_next_rip: bool,
    /// Pretend that the processor can flush all translations together only
    #[arg(long, hide = true)]
    pub(crate) no_flush_by_asid: bool,
}

/// Runs until Ctrl-C, `--count` or `--timeout`. Findings are appended to the log, one JSON line
/// each, synced as written. The default log is `%ProgramData%\hvdetect\findings.jsonl` on Windows
/// and `$XDG_STATE_HOME/hvdetect/findings.jsonl` (or `~/.local/state/…`) elsewhere.
#[derive(clap::Args, Debug)]
pub(crate) struct Watch {
    /// End after so many findings
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Also print findings that were read before and are still kept
    #[arg(long)]
    pub(crate) all: bool,
    /// Write each finding's page to DIR/SHA256.bin
    #[arg(long, value_name = "DIR")]
    pub(crate) evidence: Option<PathBuf>,
    /// The log file
    #[arg(long, value_name = "FILE", conflicts_with = "no_log")]
    pub(crate) log: Option<PathBuf>,
    /// Write no log
    #[arg(long)]
    pub(crate) no_log: bool,
    /// Exit with 10 if there were findings
    #[arg(long)]
    pub(crate) exit_code: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Show {
    /// The finding's number
    pub(crate) seq: u64,
    /// The log file, read if the driver does not have the finding
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Where `watch --evidence` put the pages
    #[arg(long, value_name = "DIR")]
    pub(crate) evidence: Option<PathBuf>,
    /// Dump the whole page, not only the part that matters
    #[arg(long)]
    pub(crate) full: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn lab_switches_are_taken_and_hidden() {
        let args = Args::parse_from(["hvdetect", "start", "--no-mtf", "--no-mbec"]);
        assert!(matches!(args.command, Command::Start(s) if s.no_mtf && s.no_mbec));
        let help = Args::command()
            .find_subcommand_mut("start")
            .expect("start")
            .render_long_help()
            .to_string();
        assert!(!help.contains("no-mtf"));
    }

    #[test]
    fn a_timeout_is_a_number_of_seconds() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["-1", "x", "nan", "1e300", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
