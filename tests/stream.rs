//! Graphs are submitted and not waited for; what the host reads and writes comes in order all the same.

mod common;

use common::device::{cpu, vulkan};
use qvac_ft::ggml::{Backend, Context, Device, Dtype, Executor, Graph, Plan, Tensor};

/// Wide enough that a device is still at it when the host comes to read.
const N: usize = 384;
/// Graphs in flight.
const ROUNDS: usize = 6;

/// `sum += a * b`, all of them `[N, N]`.
struct Case {
    backend: Backend,
    exec: Executor,
    a: Tensor,
    sum: Tensor,
    plan: Plan,
}

impl Case {
    fn new(device: &Device) -> Self {
        let backend = Backend::new(device, 2).unwrap();
        let inputs = Context::new(3, 0).unwrap();
        let square = |name| inputs.new_tensor(name, Dtype::F32, &[N as i64, N as i64]).unwrap();
        let (a, b, sum) = (square("a"), square("b"), square("sum"));
        backend.alloc(&inputs, "the inputs").unwrap();
        for t in [&a, &b] {
            t.upload(&[1f32; N * N]).unwrap();
        }
        sum.zero().unwrap();
        let ctx = Context::new(8, 64).unwrap();
        let mut graph = Graph::new(&ctx, 16, false).unwrap();
        let product = ctx.mul_mat(&a, &b).unwrap(); // [N, N]
        graph.expand(&ctx.cpy(&ctx.add(&sum, &product).unwrap(), &sum).unwrap()).unwrap();
        let exec = Executor::new(&backend, None);
        let plan = exec.plan(vec![graph]).unwrap().remove(0);
        Self { backend, exec, a, sum, plan }
    }

    fn submit(&self, rounds: usize) {
        for _ in 0..rounds {
            self.exec.compute(&self.plan).unwrap();
        }
    }

    #[track_caller]
    fn expect(&self, rounds: usize) {
        let found = self.sum.download::<f32>().unwrap();
        // Whole numbers well below 2^24: exact in any order.
        let expected = (rounds * N) as f32;
        let wrong = found.iter().filter(|&&x| x != expected).count();
        assert_eq!(wrong, 0, "of {}: {} and not {expected}", N * N, found[0]);
    }
}

fn on_every_device(test: impl Fn(&Device)) {
    test(&cpu());
    vulkan().iter().for_each(test);
}

#[test]
fn a_download_sees_all_that_was_submitted() {
    on_every_device(|device| {
        let case = Case::new(device);
        case.submit(ROUNDS);
        case.expect(ROUNDS);
        case.submit(1);
        case.expect(ROUNDS + 1);
    });
}

#[test]
fn an_upload_leaves_what_was_submitted_its_operands() {
    on_every_device(|device| {
        let case = Case::new(device);
        case.submit(ROUNDS);
        case.a.upload(&[2f32; N * N]).unwrap();
        case.submit(1);
        case.expect(ROUNDS + 2);
        case.submit(ROUNDS);
        case.sum.zero().unwrap();
        case.submit(1);
        case.expect(2);
    });
}

#[test]
fn a_plan_may_end_before_it_is_computed() {
    on_every_device(|device| {
        let mut case = Case::new(device);
        case.submit(ROUNDS);
        let other = Case::new(device);
        case.plan = other.plan;
        assert!(!case.backend.is_unfinished());
        case.expect(ROUNDS);
    });
}

#[test]
fn two_backends_of_one_device_see_each_others_results() {
    on_every_device(|device| {
        let case = Case::new(device);
        let other = Backend::new(device, 1).unwrap();
        case.submit(ROUNDS);
        Executor::new(&other, None).compute(&case.plan).unwrap();
        assert!(other.is_unfinished());
        case.expect(ROUNDS + 1);
        assert!(!other.is_unfinished());
    });
}
