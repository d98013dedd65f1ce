//! Bochs's configuration file. Pure: a text from [`Options`] and file names.
//!
//! Why each line is as it is stands in `docs/src/lab.md`.

use super::options::{Emulator, Options};

/// Video BIOS that Bochs refuses to start without (package `vgabios`).
const VIDEO_BIOS: &str = "/usr/share/vgabios/vgabios.bin";

/// Bochs keeps at most this much of the guest's RAM in the host's, in MiB.
const MOST_HOST_MEMORY: u32 = 2048;

/// The text of `bochsrc` for a machine whose second serial line is served at
/// `port` of the loopback address. File names are relative to the run directory.
pub(crate) fn compose(options: &Options, port: u16) -> String {
    let Options {
        model,
        cpus,
        quantum,
        ram,
        ..
    } = options;
    let host = (*ram).min(MOST_HOST_MEMORY);
    let (display, block) = if options.emulator == Emulator::Bochs2 {
        // Without a sound card, the packaged build's mixer thread overruns a buffer.
        (
            "rfb, options=\"timeout=0\"\nsound: driver=dummy\nspeaker: enabled=0",
            "",
        )
    } else {
        // The boot image must lie in one block (it is loaded through a pointer to
        // the first); small blocks also make the start of a large machine slow.
        ("nogui", ", block_size=8192")
    };
    // Bochs reports every RDMSR as information, under a lock: nobody reads it.
    // A low `ips` makes the serial lines fast; time stamps do not depend on it.
    format!(
        "cpu: model={model}, count={cpus}, ips=1000000, quantum={quantum}, \
         reset_on_triple_fault=0, ignore_bad_msrs=0\n\
         memory: guest={ram}, host={host}{block}\n\
         display_library: {display}\n\
         romimage: file=rom.bin, address=0xffff0000\n\
         vgaromimage: file={VIDEO_BIOS}\n\
         optramimage1: file=image.bin, address=0x00100000\n\
         clock: sync=none\n\
         com1: enabled=1, mode=file, dev=com1.log\n\
         com2: enabled=1, mode=socket-server, dev=127.0.0.1:{port}\n\
         log: bochs.log\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demonstration_machine() {
        let text = compose(&Options::intel(), 4711);
        assert!(text.contains("cpu: model=tigerlake, count=4, ips=1000000, quantum=16,"));
        assert!(text.contains("ignore_bad_msrs=0"));
        assert!(text.contains("memory: guest=256, host=256, block_size=8192\n"));
        assert!(text.contains("dev=127.0.0.1:4711\n"));
        assert!(text.contains("optramimage1: file=image.bin, address=0x00100000\n"));
        assert!(text.contains("display_library: nogui\n"));
    }

    #[test]
    fn a_large_machine_keeps_part_of_its_memory_out_of_the_host() {
        let options = Options {
            ram: 8192,
            ..Options::intel()
        };
        assert!(compose(&options, 1).contains("memory: guest=8192, host=2048, block_size=8192\n"));
    }

    #[test]
    fn the_packaged_version_gets_what_it_knows() {
        let options = Options {
            emulator: Emulator::Bochs2,
            ..Options::intel()
        };
        let text = compose(&options, 1);
        assert!(text.contains("display_library: rfb"));
        assert!(text.contains("\nsound: driver=dummy\n"));
        assert!(!text.contains("block_size"));
    }
}
