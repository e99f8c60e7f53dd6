//! What the kernels are compiled for here. A new target is one more line.

use std::fs;
use std::process::{Command, Stdio};

pub struct Target {
    pub name: &'static str,
    /// As `std::env::consts::ARCH` has it.
    pub arch: &'static str,
    /// The compiler's.
    pub flags: &'static [&'static str],
    /// What the CPU must have, in the words of /proc/cpuinfo, where the program runs on this machine's own.
    pub needs: &'static [&'static str],
    /// QEMU's CPU that runs it elsewhere; empty where nothing does. One that knows no more than the flags say, if QEMU has it.
    pub cpu: &'static str,
}

/// Every choice of vectors in `simd.h` and `ternary-tile.h`. AMX is tested through the backend of a machine that has it
/// (`tests/cpu_ternary.rs`), which then takes no vectors.
pub const TARGETS: &[Target] = &[
    Target { name: "neon", arch: "aarch64", flags: &["-march=armv8-a"], needs: &[], cpu: "cortex-a53" },
    Target {
        name: "neon-dotprod",
        arch: "aarch64",
        flags: &["-march=armv8.2-a+dotprod"],
        needs: &["asimddp"],
        cpu: "max",
    },
    Target { name: "no-vectors", arch: "x86_64", flags: &["-march=x86-64"], needs: &[], cpu: "" },
    Target {
        name: "avx2",
        arch: "x86_64",
        flags: &["-march=x86-64-v3"],
        needs: &["avx2", "fma", "bmi2", "f16c", "movbe"],
        cpu: "",
    },
    Target {
        name: "avx-vnni",
        arch: "x86_64",
        flags: &["-march=x86-64-v3", "-mavxvnni"],
        needs: &["avx2", "fma", "bmi2", "f16c", "movbe", "avx_vnni"],
        cpu: "",
    },
    Target {
        name: "avx512bw",
        arch: "x86_64",
        flags: &["-march=x86-64-v4"],
        needs: &["avx512bw", "avx512cd", "avx512dq", "avx512vl"],
        cpu: "",
    },
    Target {
        name: "avx512-vnni",
        arch: "x86_64",
        flags: &["-march=x86-64-v4", "-mavx512vnni"],
        needs: &["avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"],
        cpu: "",
    },
];

/// How a target's program is made and run.
pub struct Tools {
    pub cc: String,
    pub cxx: String,
    /// The command that the program follows; empty where it runs by itself.
    pub runner: Vec<String>,
}

const HOST: &str = std::env::consts::ARCH;

impl Target {
    /// None where this target is not for this machine to test; an error where it is, and the tools are missing.
    pub fn tools(&self) -> Result<Option<Tools>, String> {
        if self.arch == HOST {
            let info = fs::read_to_string("/proc/cpuinfo").map_err(|e| format!("/proc/cpuinfo: {e}"))?;
            let has = |feature: &&str| info.split_whitespace().any(|word| word == *feature);
            if let Some(missing) = self.needs.iter().find(|feature| !has(feature)) {
                eprintln!("NOT TESTED: {}: this CPU has no {missing}", self.name);
                return Ok(None);
            }
            let [cc, cxx] = ["cc", "c++"].map(String::from);
            return Ok(Some(Tools { cc, cxx, runner: Vec::new() }));
        }
        if self.cpu.is_empty() {
            return Ok(None);
        }
        if std::env::var_os("QVAC_NO_QEMU").is_some_and(|v| v == "1") {
            eprintln!("NOT TESTED: {}: QVAC_NO_QEMU=1", self.name);
            return Ok(None);
        }
        let arch = self.arch;
        let [cc, cxx] = ["gcc", "g++"].map(|name| format!("{arch}-linux-gnu-{name}"));
        let qemu = [format!("qemu-{arch}"), format!("qemu-{arch}-static")];
        let found = qemu.iter().find(|name| runs(name));
        match found {
            Some(qemu) if runs(&cc) && runs(&cxx) => {
                let runner = [qemu.as_str(), "-cpu", self.cpu].map(String::from).to_vec();
                Ok(Some(Tools { cc, cxx, runner }))
            }
            _ => Err(format!(
                "{}: `{cxx}` or `{}` is missing: install them (`scripts/bootstrap --ci`), or set QVAC_NO_QEMU=1",
                self.name, qemu[0]
            )),
        }
    }
}

pub fn runs(program: &str) -> bool {
    let quiet = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}
