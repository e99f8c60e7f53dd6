//! The CPU's products with ternary weights as other machines make them, and its exact arithmetic (`exact.rs`): the cases of
//! `common/ternary.rs` on programs that hold the kernels of `ggml-cpu/qvac` and are compiled for each line of `TARGETS`. Those for another architecture run
//! under QEMU. Missing tools are a failure, not a skip, unless `QVAC_NO_QEMU=1` says that they shall be missing.
//!
//! `program.cpp` puts all memory between guard pages, so that a read behind the weights is found too.
//! Linux only: that is where there is a QEMU that runs programs.
#![cfg(target_os = "linux")]

mod build;
mod exact;
mod targets;

#[path = "../common/cpu.rs"]
mod cpu;
#[path = "../common/pin.rs"]
mod pin;
#[path = "../common/ternary.rs"]
mod ternary;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use cpu::Operand;
use ternary::{for_each_case, Machine, Made, Op};

const THREADS: [u32; 2] = [1, 3];

/// One program for each target, running.
struct Programs(Vec<Running>);

struct Running {
    name: &'static str,
    child: RefCell<Child>,
}

impl Programs {
    fn start() -> Self {
        static BUILT: OnceLock<Result<Vec<build::Program>, String>> = OnceLock::new();
        let built = BUILT.get_or_init(build::programs).as_ref().unwrap_or_else(|error| panic!("{error}"));
        let start = |program: &build::Program| {
            let child = Command::new(&program.command[0])
                .args(&program.command[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|e| panic!("{:?}: {e}", program.command));
            Running { name: program.name, child: RefCell::new(child) }
        };
        Self(built.iter().map(start).collect())
    }
}

impl Machine for Programs {
    fn kernels(&self, op: Op, inputs: &[&Operand]) -> Vec<Made> {
        let on = |running: &Running| {
            let made = THREADS.map(|n| running.run(&format!("{op:?}"), code_of(op), inputs, n));
            assert!(made[0] == made[1], "{}: {op:?}: the number of threads shows", running.name);
            let [first, _] = made;
            (running.name.to_string(), first)
        };
        self.0.iter().map(on).collect()
    }

    /// Plain loops are the same on every machine, and take most of the time under QEMU.
    fn references(&self, _: Op, _: &[&Operand]) -> Vec<Made> {
        Vec::new()
    }
}

impl Running {
    /// What program.cpp makes of the op that is number `code` there, with `limbs`.
    fn run(&self, op: &str, code: (u32, u32), inputs: &[&Operand], n_threads: u32) -> Vec<u8> {
        let mut child = self.child.borrow_mut();
        let stdin = child.stdin.as_mut().expect("a pipe");
        let sent = stdin.write_all(&request(code, inputs, n_threads)).and_then(|()| stdin.flush());
        let mut result = Vec::new();
        let got = sent.and_then(|()| {
            let stdout = child.stdout.as_mut().expect("a pipe");
            let mut n = [0; 8];
            stdout.read_exact(&mut n)?;
            result.resize(u64::from_ne_bytes(n) as usize, 0);
            stdout.read_exact(&mut result)
        });
        if let Err(error) = got {
            let shapes: Vec<_> = inputs.iter().map(|o| format!("{} {:?}", o.dtype.name(), o.ne)).collect();
            let status = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            panic!(
                "{}: {op} of {} by {n_threads} threads: the program ended ({status}): {error}",
                self.name,
                shapes.join(" and ")
            );
        }
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        // Its end of input is its end.
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

fn code_of(op: Op) -> (u32, u32) {
    match op {
        Op::MulMat => (0, 0),
        Op::Quantize { limbs } => (1, limbs as u32),
        Op::QuantizeHalf { limbs } => (2, limbs as u32),
        Op::TqMulMat => (3, 0),
        Op::TqMulMatBack => (4, 0),
    }
}

/// As `answer` of program.cpp reads it.
fn request((op, limbs): (u32, u32), inputs: &[&Operand], n_threads: u32) -> Vec<u8> {
    let head = [op, limbs, n_threads, inputs.len() as u32];
    let mut bytes: Vec<u8> = head.iter().flat_map(|v| v.to_ne_bytes()).collect();
    for operand in inputs {
        let [n, m] = operand.ne[..] else { panic!("matrices only") };
        bytes.extend((operand.dtype as u32).to_ne_bytes());
        bytes.extend([n, m, operand.bytes.len() as i64].iter().flat_map(|v| v.to_ne_bytes()));
        bytes.extend(&operand.bytes);
    }
    bytes
}

for_each_case!(Programs::start());
