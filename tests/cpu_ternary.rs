//! The CPU's products with ternary weights as this machine makes them: the cases of `common/ternary.rs` on its backend, by
//! several numbers of threads and by the plain references. `tests/cpu_targets` has the kernels of other machines.

#[path = "common/cpu.rs"]
mod cpu;
#[path = "common/ternary.rs"]
mod ternary;

use cpu::Operand;
use qvac_ft::ggml::{Context, Tensor};
use ternary::{for_each_case, Machine, Made, Op};

fn build(op: Op, ctx: &Context, t: &[Tensor]) -> Tensor {
    match op {
        Op::MulMat => ctx.mul_mat(&t[0], &t[1]).unwrap(), // [n, m]
        Op::Quantize { limbs } => ctx.tq_quantize(&t[0], limbs).unwrap(), // [limbs*n + 16, m]
        Op::QuantizeHalf { limbs } => {
            let n = t[0].ne()[0] / 2;
            let half = ctx.view_rows(&t[0], n, n).unwrap(); // [n, m]
            ctx.tq_quantize(&half, limbs).unwrap() // [limbs*n + 16, m]
        }
        Op::TqMulMat => ctx.tq_mul_mat(&t[0], &t[1]).unwrap(), // [n, m]
        Op::TqMulMatBack => ctx.tq_mul_mat_back(&t[0], &t[1], t.get(2)).unwrap(), // [n, T]
    }
}

struct ThisMachine;

impl Machine for ThisMachine {
    fn kernels(&self, op: Op, inputs: &[&Operand]) -> Vec<Made> {
        let made = cpu::compute_bytes(inputs, |ctx, t| build(op, ctx, t));
        vec![("the backend".to_string(), made)]
    }

    fn references(&self, op: Op, inputs: &[&Operand]) -> Vec<Made> {
        let plain = cpu::backend(1);
        assert!(plain.use_references(), "the CPU backend has references");
        vec![("the plain references".to_string(), cpu::run(&plain, inputs, |ctx, t| build(op, ctx, t)))]
    }
}

for_each_case!(ThisMachine);
