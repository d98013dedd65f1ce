//! QEMU's command line for an AMD machine. Pure.

use super::options::Options;

/// The monitor's socket in the run directory.
pub(crate) const MONITOR: &str = "monitor";

/// What the model EPYC has on a real processor and TCG has not: asked for, each
/// costs a warning at every start.
const NOT_IN_TCG: [&str; 9] = [
    "rdseed",
    "sha-ni",
    "fxsr-opt",
    "misalignsse",
    "3dnowprefetch",
    "osvw",
    "topoext",
    "nrip-save",
    "xsavec",
];

/// Arguments of `qemu-system-x86_64` for a machine whose second serial line is
/// served at `port` of the loopback address, in the run directory.
pub(crate) fn arguments(options: &Options, port: u16) -> Vec<String> {
    let without: String = NOT_IN_TCG.map(|name| format!(",-{name}")).concat();
    let icount = if options.icount {
        // A halted processor's time goes on at once.
        "-icount shift=0,sleep=off"
    } else {
        ""
    };
    let text = format!(
        "{icount} -accel tcg -machine pc -cpu {}{without},+svm,+npt,-hypervisor -smp {} -m {} -bios rom.bin \
         -device loader,file=image.bin,addr=0x100000,force-raw=on \
         -serial file:com1.log -serial tcp:127.0.0.1:{port},server=on,wait=on \
         -display none -no-reboot -nodefaults -monitor none \
         -qmp unix:{MONITOR},server=on,wait=off \
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
        let model = &arguments[arguments
            .iter()
            .position(|word| word == "-cpu")
            .expect("there")
            + 1];
        assert!(model.starts_with("EPYC,-rdseed,") && model.ends_with(",+svm,+npt,-hypervisor"));
        assert!(arguments.contains(&"tcp:127.0.0.1:99,server=on,wait=on".to_owned()));
    }
}
