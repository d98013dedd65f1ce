//! QEMU's command line for an AMD machine. Pure.

use super::options::Options;

/// Arguments of `qemu-system-x86_64` for a machine whose second serial line is
/// served at `port` of the loopback address, in the run directory.
pub(crate) fn arguments(options: &Options, port: u16) -> Vec<String> {
    let text = format!(
        "-accel tcg -machine pc -cpu {},+svm,+npt,-hypervisor -smp {} -m {} -bios rom.bin \
         -device loader,file=image.bin,addr=0x100000,force-raw=on \
         -serial file:com1.log -serial tcp:127.0.0.1:{port},server=on,wait=on \
         -display none -no-reboot -nodefaults -monitor none \
         -device isa-debug-exit,iobase=0xf4",
        options.model, options.cpus, options.ram
    );
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::options::{Emulator, Vendor};
    use super::*;

    #[test]
    fn nested_paging_is_asked_for_and_the_hypervisor_bit_cleared() {
        let options = Options {
            vendor: Vendor::Amd,
            emulator: Emulator::Qemu,
            model: "EPYC".to_owned(),
            ..Options::intel()
        };
        let arguments = arguments(&options, 99);
        assert!(arguments.contains(&"EPYC,+svm,+npt,-hypervisor".to_owned()));
        assert!(arguments.contains(&"tcp:127.0.0.1:99,server=on,wait=on".to_owned()));
    }
}
