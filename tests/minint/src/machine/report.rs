//! What there is in the machine, as JSON.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;

use crate::ob::namespace::Node;
use crate::{io, ldr, mm, ob, ps};

/// A JSON string.
pub(super) fn text(value: &str) -> String {
    let mut out = String::from("\"");
    for character in value.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn section(section: &ldr::Section) -> String {
    let name = String::from_utf8_lossy(&section.name)
        .trim_end_matches('\0')
        .to_string();
    format!(
        "{{\"name\":{},\"rva\":\"{:#x}\",\"size\":{},\"write\":{},\"execute\":{},\"discarded\":{}}}",
        text(&name),
        section.rva,
        section.size,
        section.rights.write,
        section.rights.execute,
        section.discarded
    )
}

/// Modules with their sections.
pub(super) fn modules() -> String {
    let modules: Vec<String> = ldr::modules()
        .iter()
        .map(|module| {
            let sections: Vec<String> = module.sections.iter().map(section).collect();
            format!(
                "{{\"name\":{},\"path\":{},\"base\":\"{:#x}\",\"size\":{},\"entry\":\"{:#x}\",\"sections\":[{}]}}",
                text(&module.name),
                text(&module.path),
                module.base,
                module.size,
                module.entry,
                sections.join(",")
            )
        })
        .collect();
    format!("{{\"modules\":[{}]}}", modules.join(","))
}

/// Blocks of one pool tag.
#[derive(Clone, Copy, Default)]
struct Usage {
    tag: u32,
    blocks: u64,
    bytes: u64,
}

/// Pool by tag, and free pages.
pub(super) fn memory() -> String {
    // The accounts are read under their lock, where nothing can be allocated.
    let mut tags = [Usage::default(); 256];
    let owners = ldr::modules()
        .into_iter()
        .map(|module| module.number)
        .chain([ldr::NOBODY]);
    for owner in owners {
        mm::pool::outstanding(owner, &mut |block| {
            let slot = tags
                .iter_mut()
                .find(|slot| slot.tag == block.tag || slot.blocks == 0);
            if let Some(slot) = slot {
                slot.tag = block.tag;
                slot.blocks += 1;
                slot.bytes += block.bytes as u64;
            }
        });
    }
    let tags: Vec<String> = tags
        .iter()
        .filter(|slot| slot.blocks != 0)
        .map(|slot| {
            let name = String::from_utf8_lossy(&slot.tag.to_le_bytes()).into_owned();
            format!(
                "{{\"tag\":{},\"blocks\":{},\"bytes\":{}}}",
                text(&name),
                slot.blocks,
                slot.bytes
            )
        })
        .collect();
    format!(
        "{{\"free_pages\":{},\"pages\":{},\"pool\":[{}]}}",
        mm::physical::free_pages(),
        super::physical_pages(),
        tags.join(",")
    )
}

/// Processes and what runs on each processor.
pub(super) fn threads() -> String {
    let mut processes = Vec::new();
    ps::list(&mut |pid, name| {
        processes.push(format!("{{\"pid\":{pid},\"name\":{}}}", text(name)));
    });
    format!("{{\"processes\":[{}]}}", processes.join(","))
}

/// Services that are known to the I/O manager.
pub(super) fn services() -> String {
    let services: Vec<String> = io::driver::running()
        .iter()
        .map(|(name, driver)| {
            let state = io::driver::query(name) as u32;
            format!(
                "{{\"name\":{},\"state\":{state},\"driver\":\"{driver:#x}\"}}",
                text(name)
            )
        })
        .collect();
    format!("{{\"services\":[{}]}}", services.join(","))
}

/// The name space.
pub(super) fn objects() -> String {
    let mut nodes = Vec::new();
    ob::with_names(&mut |path, node| {
        let what = match node {
            Node::Directory => "\"directory\"".to_string(),
            Node::Link(target) => format!("\"link\",\"target\":{}", text(target)),
            Node::Object(address) => format!("\"object\",\"address\":\"{address:#x}\""),
        };
        nodes.push(format!("{{\"path\":{},\"kind\":{what}}}", text(path)));
    });
    format!(
        "{{\"count\":{},\"names\":[{}]}}",
        ob::count(),
        nodes.join(",")
    )
}
