//! The driver file that Windows would load: read as a PE and checked, without a
//! machine. (Microsoft PE/COFF specification; "Windows driver signing" for
//! `FORCE_INTEGRITY`.)

use super::Stage;
use anyhow::{Context, Result, ensure};
use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{ImageNtHeaders, ImageOptionalHeader, PeFile64};
use std::fs;

/// The images that it may import from.
const IMPORTS: [&str; 3] = ["ntoskrnl.exe", "hal.dll", "wdfldr.sys"];

pub(super) fn driver_file(stage: &mut Stage<'_>) -> Result<()> {
    let path = stage.images().driver.as_ref().context("no driver built")?;
    let bytes = fs::read(path)?;
    check(&bytes)?;
    let pdb = path.with_extension("pdb");
    let symbols = fs::read(&pdb).with_context(|| pdb.display().to_string())?;
    ensure!(
        symbols.starts_with(b"Microsoft C/C++ MSF 7.00"),
        "{} is no PDB",
        pdb.display()
    );
    let image = PeFile64::parse(&*bytes)?;
    let named = object::Object::pdb_info(&image)?.context("the image names no PDB")?;
    ensure!(
        named.path() == b"hvdetect_driver.pdb",
        "the image names the PDB {}",
        String::from_utf8_lossy(named.path())
    );
    Ok(())
}

fn check(bytes: &[u8]) -> Result<()> {
    let image = PeFile64::parse(bytes).context("not a PE32+ image")?;
    let headers = image.nt_headers();
    let optional = headers.optional_header();
    ensure!(
        headers.file_header().machine.get(LE) == pe::IMAGE_FILE_MACHINE_AMD64,
        "not for x64"
    );
    ensure!(
        optional.subsystem() == pe::IMAGE_SUBSYSTEM_NATIVE,
        "not a native image"
    );
    let wanted = pe::IMAGE_DLLCHARACTERISTICS_FORCE_INTEGRITY
        | pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT
        | pe::IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE;
    ensure!(
        optional.dll_characteristics() & wanted == wanted,
        "DLL characteristics {:#x}",
        optional.dll_characteristics()
    );
    ensure!(
        optional.section_alignment() == 4096,
        "section alignment {}",
        optional.section_alignment()
    );
    ensure!(optional.check_sum() != 0, "no checksum");
    let offset = checksum_offset(bytes)?;
    let computed = checksum(bytes, offset);
    ensure!(
        optional.check_sum() == computed,
        "checksum {:#x}, computed {computed:#x}",
        optional.check_sum()
    );
    let sections = image.section_table();
    let mut entry_is_code = false;
    for section in sections.iter() {
        let name = String::from_utf8_lossy(section.raw_name()).into_owned();
        let rights = section.characteristics.get(LE);
        let executable = rights.contains(pe::IMAGE_SCN_MEM_EXECUTE);
        ensure!(
            !executable || !rights.contains(pe::IMAGE_SCN_MEM_WRITE),
            "section {name} is writable and executable"
        );
        let start = section.virtual_address.get(LE);
        let range = start..start + section.virtual_size.get(LE);
        entry_is_code |= executable && range.contains(&optional.address_of_entry_point());
    }
    ensure!(entry_is_code, "the entry point is in no executable section");
    let table = image.import_table()?.context("no imports")?;
    let mut bind = false;
    let mut descriptors = table.descriptors()?;
    while let Some(descriptor) = descriptors.next()? {
        let library = String::from_utf8_lossy(table.name(descriptor.name.get(LE))?).into_owned();
        let lower = library.to_ascii_lowercase();
        ensure!(IMPORTS.contains(&lower.as_str()), "imports from {library}");
        let mut thunks = table.thunks(descriptor.original_first_thunk.get(LE))?;
        while let Some(thunk) = thunks.next::<pe::ImageNtHeaders64>()? {
            use object::read::pe::ImageThunkData as _;
            ensure!(!thunk.is_ordinal(), "imports from {library} by ordinal");
            let (_, name) = table.hint_name(thunk.address())?;
            bind |= lower == "wdfldr.sys" && name == b"WdfVersionBind";
        }
    }
    ensure!(bind, "does not import WdfVersionBind from WDFLDR.SYS");
    Ok(())
}

/// Where the optional header's `CheckSum` stands in the file.
fn checksum_offset(bytes: &[u8]) -> Result<usize> {
    let lfanew = bytes
        .get(0x3C..0x40)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes)
        .context("no DOS header")?;
    // Signature 4, file header 20, offset of CheckSum in the optional header 64.
    Ok(usize::try_from(lfanew)? + 4 + 20 + 64)
}

/// The checksum of `ImageHlp`: 16-bit one's-complement sum of the file without
/// the field itself, plus the file's length.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let mut sum: u32 = 0;
    for (index, pair) in bytes.chunks(2).enumerate() {
        let at = index * 2;
        if (field..field + 4).contains(&at) {
            continue;
        }
        let word = u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 8;
        sum += word;
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum = (sum & 0xFFFF) + (sum >> 16);
    // Images are far below 4 GiB.
    sum.wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_leaves_its_own_field_out() {
        let mut bytes = vec![0u8; 64];
        bytes[0] = 1;
        bytes[63] = 2;
        let sum = checksum(&bytes, 8);
        assert_eq!(sum, 1 + 0x200 + 64);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(checksum(&bytes, 8), sum);
        bytes[20] = 9;
        assert_ne!(checksum(&bytes, 8), sum);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(check(b"MZ and nothing else").is_err());
    }
}
