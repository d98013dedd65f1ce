//! A PE file with its PDB: sections, imports, relocated pointers, and functions
//! by address.

use anyhow::{Context, Result, ensure};
use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{
    ImageNtHeaders as _, ImageOptionalHeader as _, ImageThunkData as _, PeFile64,
};
use pdb::FallibleIterator as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

/// What is known of a function.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// First byte, relative to the image's base.
    pub(crate) start: u32,
    /// One past its last byte.
    pub(crate) end: u32,
    /// Its names: identical functions are one in the file.
    pub(crate) names: Vec<String>,
}

impl Function {
    /// The name to show.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or("?", String::as_str)
    }
}

/// An image in memory's layout, with names.
#[derive(Debug)]
pub(crate) struct Image {
    memory: Vec<u8>,
    /// Functions by their first byte.
    functions: BTreeMap<u32, Function>,
    /// Slots of the import address table.
    imports: BTreeMap<u32, String>,
    /// Slots that hold an address of this image.
    pointers: BTreeSet<u32>,
    base: u64,
}

impl Image {
    /// Reads a driver file and the PDB beside it. `labels` are symbols that stand
    /// inside a function.
    pub(crate) fn read(path: &Path, labels: &[&str]) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let file = PeFile64::parse(&*bytes)?;
        let optional = file.nt_headers().optional_header();
        let mut memory = vec![0; usize::try_from(optional.size_of_image())?];
        let mut code = Vec::new();
        for section in file.section_table().iter() {
            let start = section.virtual_address.get(LE);
            let data = section.pe_data(&*bytes)?;
            let wanted = usize::try_from(section.virtual_size.get(LE))?.min(data.len());
            let place = usize::try_from(start)?;
            memory
                .get_mut(place..place + wanted)
                .context("a section outside of the image")?
                .copy_from_slice(&data[..wanted]);
            let rights = section.characteristics.get(LE);
            if rights.contains(pe::IMAGE_SCN_MEM_EXECUTE) {
                code.push(start..start + section.virtual_size.get(LE));
            }
        }
        let mut image = Self {
            memory,
            functions: BTreeMap::new(),
            imports: imports(&file)?,
            pointers: pointers(&file, &bytes)?,
            base: optional.image_base(),
        };
        image.name(&path.with_extension("pdb"), labels, &code)?;
        Ok(image)
    }

    fn name(&mut self, path: &Path, labels: &[&str], code: &[std::ops::Range<u32>]) -> Result<()> {
        let mut pdb =
            pdb::PDB::open(File::open(path).with_context(|| path.display().to_string())?)?;
        let map = pdb.address_map()?;
        let mut names: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let mut lengths: BTreeMap<u32, u32> = BTreeMap::new();
        let globals = pdb.global_symbols()?;
        let mut symbols = globals.iter();
        while let Some(symbol) = symbols.next()? {
            let Ok(pdb::SymbolData::Public(public)) = symbol.parse() else {
                continue;
            };
            if let Some(rva) = public.offset.to_rva(&map) {
                let raw = public.name.to_string();
                if !labels.contains(&&*raw) {
                    let name = format!("{:#}", rustc_demangle::demangle(&raw));
                    names.entry(rva.0).or_default().push(name);
                }
            }
        }
        let information = pdb.debug_information()?;
        let mut modules = information.modules()?;
        while let Some(module) = modules.next()? {
            let Some(module) = pdb.module_info(&module)? else {
                continue;
            };
            let mut symbols = module.symbols()?;
            while let Some(symbol) = symbols.next()? {
                if let Ok(pdb::SymbolData::Procedure(procedure)) = symbol.parse()
                    && let Some(rva) = procedure.offset.to_rva(&map)
                {
                    lengths.insert(rva.0, procedure.len);
                    let known = names.entry(rva.0).or_default();
                    if known.is_empty() {
                        known.push(procedure.name.to_string().into_owned());
                    }
                }
            }
        }
        names.retain(|rva, _| code.iter().any(|range| range.contains(rva)));
        ensure!(!names.is_empty(), "{} names no function", path.display());
        let starts: Vec<u32> = names.keys().copied().collect();
        for (start, names) in names {
            let section = code
                .iter()
                .find(|range| range.contains(&start))
                .context("code outside of sections")?;
            let next = starts
                .iter()
                .copied()
                .find(|&next| next > start)
                .unwrap_or(section.end)
                .min(section.end);
            let end = lengths.get(&start).map_or(next, |length| start + length);
            self.functions.insert(start, Function { start, end, names });
        }
        Ok(())
    }

    /// Address of the image's first byte.
    pub(crate) const fn base(&self) -> u64 {
        self.base
    }

    /// The bytes of a function.
    pub(crate) fn bytes(&self, function: &Function) -> &[u8] {
        let range = function.start as usize..function.end as usize;
        self.memory.get(range).unwrap_or_default()
    }

    /// Every function.
    pub(crate) fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.values()
    }

    /// The function that has this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Function> {
        self.functions()
            .find(|function| function.names.iter().any(|known| known == name))
    }

    /// The function that holds this address.
    pub(crate) fn at(&self, rva: u32) -> Option<&Function> {
        let (_, function) = self.functions.range(..=rva).next_back()?;
        (rva < function.end).then_some(function)
    }

    /// The import whose slot this is.
    pub(crate) fn import(&self, rva: u32) -> Option<&str> {
        self.imports.get(&rva).map(String::as_str)
    }

    /// The function to which the slot at `rva` points, if it does.
    pub(crate) fn pointer(&self, rva: u32) -> Option<&Function> {
        let place = rva as usize;
        let value = self.memory.get(place..place + 8)?.try_into().ok()?;
        if !self.pointers.contains(&rva) {
            return None;
        }
        let target = u64::from_le_bytes(value).checked_sub(self.base)?;
        self.functions.get(&u32::try_from(target).ok()?)
    }
}

fn imports(file: &PeFile64<'_>) -> Result<BTreeMap<u32, String>> {
    let mut slots = BTreeMap::new();
    let table = file.import_table()?.context("no imports")?;
    let mut descriptors = table.descriptors()?;
    while let Some(descriptor) = descriptors.next()? {
        let mut slot = descriptor.first_thunk.get(LE);
        let mut thunks = table.thunks(descriptor.original_first_thunk.get(LE))?;
        while let Some(thunk) = thunks.next::<pe::ImageNtHeaders64>()? {
            let (_, name) = table.hint_name(thunk.address())?;
            slots.insert(slot, String::from_utf8_lossy(name).into_owned());
            slot += 8;
        }
    }
    Ok(slots)
}

fn pointers(file: &PeFile64<'_>, bytes: &[u8]) -> Result<BTreeSet<u32>> {
    let mut slots = BTreeSet::new();
    let directories = file.data_directories();
    let Some(mut blocks) = directories.relocation_blocks(bytes, &file.section_table())? else {
        return Ok(slots);
    };
    while let Some(block) = blocks.next()? {
        for relocation in block {
            if relocation.typ == pe::IMAGE_REL_BASED_DIR64 {
                slots.insert(relocation.virtual_address);
            }
        }
    }
    Ok(slots)
}
