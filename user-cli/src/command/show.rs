//! `show`: one finding in full.
//!
//! From the driver if it still has the finding, otherwise from the log, whose
//! last line with that number counts. The page comes from the driver too, or
//! from the folder of `watch --evidence`, where its name is its hash.

use crate::args::Show;
use crate::failure::Failure;
use crate::interrupt::Until;
use crate::log::{self, Line};
use crate::output::Output;
use crate::record::{Record, hex_bytes};
use crate::render::{finding, page};
use crate::session::Session;
use detector::wire::WaitFlags;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

type Page = Box<[u8; 4096]>;

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    record: &'a Record,
    disassembly: &'a [page::Listing],
    page: Option<String>,
}

pub(super) fn run(show: &Show, json: bool, output: &Output) -> Result<(), Failure> {
    let (record, page) = find(show)?;
    let listings = page::listings(&record, page.as_deref());
    if json {
        let shown = Shown {
            record: &record,
            disassembly: &listings,
            page: page.as_ref().map(|page| hex_bytes(&page[..])),
        };
        // No map key but strings and no value that can fail.
        let line = serde_json::to_string(&shown).unwrap_or_default();
        output.print(&(crate::escape::json(&line) + "\n"))?;
        return Ok(());
    }
    let mut text = finding::full(&record, output.paint);
    text += &page::listing_text(&listings);
    match &page {
        Some(bytes) => text += &page::dump(bytes, page::focus(&record), show.full),
        None if record.sha256.is_some() => {
            eprintln!(
                "hvdetect: the page is not kept any more; `watch --evidence DIR` saves them."
            );
        }
        None => {}
    }
    output.print(&text)?;
    Ok(())
}

fn find(show: &Show) -> Result<(Record, Option<Page>), Failure> {
    // A log or folder that the user names is meant, whatever the driver has.
    let asked_elsewhere = show.log.is_some() || show.evidence.is_some();
    if !asked_elsewhere && let Some((record, page)) = from_driver(show.seq)? {
        return Ok((record, page));
    }
    let record = from_log(show)?;
    let page = match (&show.evidence, &record.sha256) {
        (Some(folder), Some(hash)) => from_folder(folder, hash)?,
        _ => None,
    };
    Ok((record, page))
}

fn from_driver(seq: u64) -> Result<Option<(Record, Option<Page>)>, Failure> {
    let Ok(mut session) = Session::open() else {
        return Ok(None);
    };
    let flags = WaitFlags::NO_WAIT | WaitFlags::PEEK;
    let until = Until::within(None);
    let batch = session.wait(seq.saturating_sub(1), 1, flags, until)?;
    let finding = batch.and_then(|b| b.findings.into_iter().find(|f| f.seq == seq));
    let Some(finding) = finding else {
        return Ok(None);
    };
    let page = session.evidence(seq)?;
    let record = Record::from(&finding);
    if let (Some(page), Some(hash)) = (&page, &record.sha256) {
        verify(&page[..], hash);
    }
    Ok(Some((record, page)))
}

fn from_log(show: &Show) -> Result<Record, Failure> {
    let path = log::path(show.log.as_deref())?;
    let missing = |why: &str| {
        Failure::other(format!(
            "there is no finding {} in the driver or in {}{why}.",
            show.seq,
            path.display()
        ))
    };
    let lines = log::read(&path).map_err(|error| missing(&format!(" ({error})")))?;
    let mut last = None;
    for line in lines {
        if let Line::Good(record) = line?
            && record.seq == show.seq
        {
            last = Some(*record);
        }
    }
    last.ok_or_else(|| missing(""))
}

fn from_folder(folder: &Path, hash: &str) -> Result<Option<Page>, Failure> {
    // The hash comes from a file: it must not lead out of the folder.
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::other("the log's SHA-256 is not one."));
    }
    let path = folder.join(format!("{hash}.bin"));
    let bytes =
        fs::read(&path).map_err(|error| Failure::other(format!("{}: {error}", path.display())))?;
    let page: Page = bytes
        .into_boxed_slice()
        .try_into()
        .map_err(|_| Failure::other(format!("{} is not a page.", path.display())))?;
    verify(&page[..], hash);
    Ok(Some(page))
}

fn verify(page: &[u8], hash: &str) {
    if hex_bytes(&Sha256::digest(page)) != hash.to_ascii_lowercase() {
        eprintln!("hvdetect: WARNING: the page does not have the finding's SHA-256.");
    }
}
