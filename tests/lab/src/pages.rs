//! The project's own pages: every relative link leads to a file, every chapter
//! stands in the summary, every line of the summary has its chapter.
//!
//! Only a test: mdbook is not among the packages of a plain Debian, and of what
//! it checks this is what breaks in practice.

use crate::place;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The targets of the inline links of a page, code left out.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        // Every second part of a line is between backquotes.
        let plain: String = line.split('`').step_by(2).collect();
        for part in plain.split("](").skip(1) {
            if let Some((target, _)) = part.split_once(')') {
                found.push(target.to_owned());
            }
        }
    }
    found
}

/// The file that a link means, seen from `page`; none if it leaves the project.
fn file_of(page: &Path, link: &str) -> Option<PathBuf> {
    let path = link.split('#').next().unwrap_or(link);
    if path.is_empty() || path.contains(':') {
        return None;
    }
    Some(page.parent()?.join(path))
}

fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "md"))
        .collect();
    found.sort();
    found
}

#[test]
fn links_are_found_outside_code() {
    let text = "[a](x.md) and `[b](no.md)` and [c](y.md#part)\n```\n[d](no.md)\n```\n[e](#here)";
    assert_eq!(links(text), ["x.md", "y.md#part", "#here"]);
    let page = Path::new("docs/src/page.md");
    let file = |link: &str| file_of(page, link);
    assert_eq!(file("y.md#part"), Some(PathBuf::from("docs/src/y.md")));
    assert_eq!(file("#here"), None);
    assert_eq!(file("https://example.org/x.md"), None);
}

#[test]
fn every_relative_link_leads_somewhere() {
    let root = place::workspace();
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in pages(&root)
        .into_iter()
        .chain(pages(&root.join("docs/src")))
    {
        for link in links(&fs::read_to_string(&page).expect("page")) {
            let Some(file) = file_of(&page, &link) else {
                continue;
            };
            seen += 1;
            if !file.exists() {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(seen > 0, "no link was found at all");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn the_summary_lists_every_chapter_once() {
    let folder = place::workspace().join("docs/src");
    let summary = folder.join("SUMMARY.md");
    let listed = links(&fs::read_to_string(&summary).expect("summary"));
    let unique: BTreeSet<PathBuf> = listed.iter().map(|link| folder.join(link)).collect();
    assert_eq!(unique.len(), listed.len(), "a chapter is listed twice");
    let chapters: BTreeSet<PathBuf> = pages(&folder)
        .into_iter()
        .filter(|page| *page != summary)
        .collect();
    assert_eq!(unique, chapters);
}
