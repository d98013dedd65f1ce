//! One file a verb.

mod control;
mod log;
mod show;
mod watch;

use crate::args::{Args, Command};
use crate::failure::{FINDINGS, Failure, USAGE};
use crate::output::Output;
use crate::render::status::Status;
use crate::session::Session;
use clap::CommandFactory;
use std::process::ExitCode;

/// Does what the command line says.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let output = Output::new(args.color);
    let found = match &args.command {
        Command::Start(start) => control::start(start).map(|()| false),
        Command::Stop => control::stop().map(|()| false),
        Command::Status { exit_code } => {
            let findings = status(args.json, &output)?;
            Ok(*exit_code && findings)
        }
        Command::Watch(watch) => {
            let findings = watch::run(watch, args.json, &output)?;
            Ok(watch.exit_code && findings)
        }
        Command::Log { log, exit_code } => {
            let findings = log::run(log.as_deref(), args.json, &output)?;
            Ok(*exit_code && findings)
        }
        Command::Show(show) => show::run(show, args.json, &output).map(|()| false),
        Command::Completions { shell } => {
            if args.json {
                return Err(Failure::new(USAGE, "a completion script has no JSON form."));
            }
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "hvdetect", &mut script);
            output.print(&String::from_utf8_lossy(&script))?;
            Ok(false)
        }
    }?;
    Ok(if found {
        ExitCode::from(FINDINGS)
    } else {
        ExitCode::SUCCESS
    })
}

fn status(json: bool, output: &Output) -> Result<bool, Failure> {
    let mut session = Session::open()?;
    let reply = session.status()?;
    let status = Status::new(&reply, session.driver);
    output.print(&if json {
        status.json() + "\n"
    } else {
        status.text(output.paint)
    })?;
    Ok(reply.accounts.findings > 0)
}
