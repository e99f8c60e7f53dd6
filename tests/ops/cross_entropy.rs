//! Cross entropy over class ids, forward, backward and through autodiff.

use qvac_ft::ggml::{Dtype, Graph};

use super::{check, noise, Bench, Want};

/// exp and log of a GPU are good to a few ulp (Vulkan allows 3 + 2|x|, with |x| up to about 20 here).
const LOSS_TOLERANCE: f64 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-5;
const SCALE: f32 = 0.37;

struct Rows {
    n_vocab: usize,
    logits: Vec<f32>,
    labels: Vec<i32>,
}

impl Rows {
    /// Every third row ignored; from five rows on, two labels that are no class.
    fn new(n_vocab: usize, n_rows: usize) -> Self {
        let logits = noise(3, n_vocab * n_rows).into_iter().map(|x| 4.0 * x).collect();
        let mut labels: Vec<i32> = (0..n_rows)
            .map(|r| if r % 3 == 1 { -1 - r as i32 } else { (r * 7919 % n_vocab) as i32 })
            .collect();
        if n_rows >= 5 {
            labels[3] = n_vocab as i32;
            labels[4] = i32::MAX;
        }
        Self { n_vocab, logits, labels }
    }

    fn softmax(&self, row: usize) -> (Vec<f64>, f64) {
        let x: Vec<f64> =
            self.logits[row * self.n_vocab..][..self.n_vocab].iter().map(|&x| f64::from(x)).collect();
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
        (x.iter().map(|x| (x - max).exp() / sum).collect(), max + sum.ln())
    }

    fn loss(&self) -> Vec<f64> {
        let one = |(row, &label): (usize, &i32)| match usize::try_from(label) {
            Err(_) => 0.0,
            Ok(label) if label >= self.n_vocab => f64::NAN,
            Ok(label) => {
                f64::from(SCALE) * (self.softmax(row).1 - f64::from(self.logits[row * self.n_vocab + label]))
            }
        };
        self.labels.iter().enumerate().map(one).collect()
    }

    fn gradient(&self, grad: &[f32]) -> Vec<f64> {
        let mut all = Vec::new();
        for (row, &label) in self.labels.iter().enumerate() {
            let g = f64::from(SCALE) * f64::from(grad[row % grad.len()]);
            let softmax = self.softmax(row).0;
            all.extend(softmax.iter().enumerate().map(|(v, p)| match usize::try_from(label) {
                Err(_) => 0.0,
                Ok(label) if label >= self.n_vocab => f64::NAN,
                Ok(label) => g * (p - f64::from(u8::from(v == label))),
            }));
        }
        all
    }

    fn shape(&self) -> [i64; 2] {
        [self.n_vocab as i64, self.labels.len() as i64]
    }
}

/// 513 and 600 rows go past one line of the dispatch grid, 32001 past every invocation of a workgroup.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (7, 3), (256, 5), (257, 6), (1025, 17), (1028, 5), (33, 600), (32000, 4), (32001, 4)];

#[test]
fn forward() {
    for (n_vocab, n_rows) in SHAPES {
        let rows = Rows::new(n_vocab, n_rows);
        check(&format!("loss {n_vocab}x{n_rows}"), &Want::within(rows.loss(), LOSS_TOLERANCE), |mut t| {
            let logits = t.f32(&rows.shape(), &rows.logits);
            let labels = t.i32(&rows.labels);
            let out = t.ops.cross_entropy_loss_labels(&logits, &labels, SCALE).unwrap();
            t.run(&out)
        });
    }
}

#[test]
fn backward() {
    for (n_vocab, n_rows) in SHAPES {
        let rows = Rows::new(n_vocab, n_rows);
        for grad in [noise(4, 1), noise(5, n_rows)] {
            let want = Want::within(rows.gradient(&grad), GRADIENT_TOLERANCE);
            check(&format!("loss_back {n_vocab}x{n_rows} grad[{}]", grad.len()), &want, |mut t| {
                let g = t.f32(&[grad.len() as i64], &grad);
                let logits = t.f32(&rows.shape(), &rows.logits);
                let labels = t.i32(&rows.labels);
                let out = t.ops.cross_entropy_loss_labels_back(&g, &logits, &labels, SCALE).unwrap();
                t.run(&out)
            });
        }
    }
}

#[test]
fn ignored_rows_are_exactly_zero() {
    let rows = Rows { n_vocab: 40, logits: vec![f32::INFINITY; 80], labels: vec![-1, -100] };
    check("ignored loss", &Want::exactly(vec![0.0; 2]), |mut t| {
        let (logits, labels) = (t.f32(&rows.shape(), &rows.logits), t.i32(&rows.labels));
        let out = t.ops.cross_entropy_loss_labels(&logits, &labels, SCALE).unwrap();
        t.run(&out)
    });
    check("ignored gradient", &Want::exactly(vec![0.0; 80]), |mut t| {
        let grad = t.f32(&[1], &[3.0]);
        let (logits, labels) = (t.f32(&rows.shape(), &rows.logits), t.i32(&rows.labels));
        let out = t.ops.cross_entropy_loss_labels_back(&grad, &logits, &labels, SCALE).unwrap();
        t.run(&out)
    });
}

#[test]
fn extreme_logits_stay_finite() {
    // One row around 1e4, where exp overflows unless the maximum is taken off; one with masked (-inf) logits.
    let mut logits: Vec<f32> = (0..64).map(|i| 1e4 + i as f32 * 0.25).collect();
    logits.extend((0..64).map(|i| if i % 2 == 0 { f32::NEG_INFINITY } else { 0.5 }));
    let rows = Rows { n_vocab: 64, logits, labels: vec![60, 3] };
    check("extreme logits", &Want::within(rows.loss(), LOSS_TOLERANCE), |mut t| {
        let (logits, labels) = (t.f32(&rows.shape(), &rows.logits), t.i32(&rows.labels));
        let out = t.ops.cross_entropy_loss_labels(&logits, &labels, SCALE).unwrap();
        t.run(&out)
    });
}

#[test]
fn autodiff_uses_the_labels_rule() {
    // sum(loss * w) with a weight per row: the rule must hand the row's own gradient on.
    let rows = Rows::new(50, 4);
    let weight = noise(6, 4);
    let want = Want::within(rows.gradient(&weight), GRADIENT_TOLERANCE);
    check("autodiff of the loss", &want, |mut t: Bench| {
        let logits = t.input(Dtype::F32, &rows.shape(), &rows.logits);
        let labels = t.i32(&rows.labels);
        logits.set_param().unwrap();
        let y = t.ops.cross_entropy_loss_labels(&logits, &labels, SCALE).unwrap();
        t.grad(&logits, &y, &weight)
    });
    // The graph that this makes holds one backward node of ours.
    let mut t = Bench::new(&super::devices()[0]);
    let logits = t.f32(&rows.shape(), &rows.logits);
    let labels = t.i32(&rows.labels);
    logits.set_param().unwrap();
    let loss = t.ops.sum(&t.ops.cross_entropy_loss_labels(&logits, &labels, SCALE).unwrap()).unwrap();
    loss.set_loss().unwrap();
    let mut graph = Graph::new(&t.ops, 64, true).unwrap();
    graph.expand(&loss).unwrap();
    graph.backward_expand(&[]).unwrap();
    let backs = graph.nodes().iter().filter(|n| n.op_name() == "CROSS_ENTROPY_LOSS_BACK").count();
    assert_eq!(backs, 1);
}
