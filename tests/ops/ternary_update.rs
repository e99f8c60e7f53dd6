//! LOW_RANK_ADD right behind the ternary product that it adds to: one dispatch on Vulkan, and the bits of two.

use qvac_ft::ggml::{Dtype, Tensor};

use super::low_rank::Layout;
use super::ternary_reference::{assert_same, floats, on_variants, Random, Scales, Tokens, Weights, TYPES};
use super::Bench;

/// Each way in which invocations share a tile.
const VARIANTS: [&str; 10] = [
    "",
    "plain:0",
    "plain:2",
    "dot:1",
    "dot:5",
    "coopmat:0",
    "coopmat:2",
    "coopmat:3",
    "coopmat:4",
    "coopmat:5",
];

/// Which product, and of how many limbs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Product {
    Forward,
    Back { limbs: usize, add: bool },
}

/// What is added to it.
#[derive(Clone, Copy, Debug)]
struct Update {
    rank: i64,
    p: Layout,
    z: Layout,
    residual: bool,
}

/// The sum made in one go stands above the sum of a product that was copied first.
fn both(
    bench: &mut Bench,
    w: &Weights,
    x: &Tokens,
    product: Product,
    update: Update,
    values: &[Vec<f32>; 4],
) -> Tensor {
    let [p, z, residual, add] = values;
    let (n_out, tokens) = match product {
        Product::Forward => (w.m as i64, x.scales.len() as i64),
        Product::Back { .. } => (w.n as i64, x.scales.len() as i64),
    };
    let (tw, tx) = (w.tensor(bench), x.tensor(bench));
    let (_, p) = update.p.input(bench, [n_out, update.rank], p);
    let (_, z) = update.z.input(bench, [update.rank, tokens], z);
    let residual = update.residual.then(|| bench.f32(&[n_out, tokens], residual));
    let add = matches!(product, Product::Back { add: true, .. }).then(|| bench.f32(&[n_out, tokens], add));
    let ops = bench.ops.clone();
    let make = || match product {
        Product::Forward => ops.tq_mul_mat(&tw, &tx).unwrap(),
        Product::Back { .. } => ops.tq_mul_mat_back(&tw, &tx, add.as_ref()).unwrap(),
    };
    let update = |y: &Tensor| ops.low_rank_add(y, &p, &z, residual.as_ref(), -0.75).unwrap();
    let at_once = update(&make());
    let apart = update(&ops.cont(&make()).unwrap());
    ops.concat_rows(&at_once, &apart).unwrap()
}

fn check(
    w: &Weights,
    tokens: usize,
    product: Product,
    update: Update,
    variants: &[&str],
    random: &mut Random,
) {
    let (n_in, n_out, limbs) = match product {
        Product::Forward => (w.n, w.m, 1),
        Product::Back { limbs, .. } => (w.m, w.n, limbs),
    };
    let x = Tokens::new(&random.values(n_in * tokens), n_in, limbs);
    let r = update.rank as usize;
    let values = [n_out * r, r * tokens, n_out * tokens, n_out * tokens].map(|n| random.values(n));
    let case = format!("{product:?} {} [{}, {}] x {tokens}, {update:?}", w.dtype, w.n, w.m);
    on_variants(
        &case,
        variants,
        |bench| both(bench, w, &x, product, update, &values),
        |what, got| {
            let rows = floats(got);
            let halves = |first: usize| -> Vec<f32> {
                rows.chunks(2 * n_out).flat_map(|row| &row[first..first + n_out]).copied().collect()
            };
            assert!(rows.iter().any(|&v| v != 0.0), "{what}");
            assert_same(what, &halves(0), &halves(n_out));
        },
    );
}

const PLAIN: Update = Update { rank: 8, p: Layout::TRANSPOSED, z: Layout::PLAIN, residual: false };

#[test]
fn an_update_is_part_of_the_forward() {
    let mut random = Random(21);
    for (dtype, variants) in TYPES.into_iter().zip([&VARIANTS[..1], &VARIANTS]) {
        // Outputs that are no multiple of four, and of any tile.
        for (n, m, tokens) in [(512, 65, 40), (256, 136, 129), (256, 1, 9), (256, 4, 3)] {
            let w = Weights::new(dtype, n, m, Scales::One, &mut random);
            for update in [PLAIN, Update { rank: 11, residual: true, ..PLAIN }] {
                check(&w, tokens, Product::Forward, update, variants, &mut random);
            }
        }
    }
}

#[test]
fn an_update_is_part_of_the_backward() {
    let mut random = Random(22);
    let update = Update { rank: 24, p: Layout::PLAIN, ..PLAIN };
    for (dtype, variants) in TYPES.into_iter().zip([&VARIANTS[..1], &VARIANTS]) {
        let w = Weights::new(dtype, 512, 256, Scales::One, &mut random);
        for (tokens, add) in [(35, true), (129, false)] {
            check(&w, tokens, Product::Back { limbs: 2, add }, update, variants, &mut random);
        }
        check(&w, 21, Product::Back { limbs: 1, add: true }, update, &[""], &mut random);
        // Two things to add are one too many: the update stays apart.
        let update = Update { residual: true, ..update };
        check(&w, 17, Product::Back { limbs: 2, add: true }, update, &[""], &mut random);
    }
}

#[test]
fn an_update_of_any_rank_and_layout() {
    let mut random = Random(23);
    let w = Weights::new(Dtype::TQ2_0, 256, 256, Scales::One, &mut random);
    for (i, rank) in [1, 3, 64, 70].into_iter().enumerate() {
        for (j, p) in Layout::ALL.into_iter().enumerate() {
            let z = [Layout::PLAIN, Layout::middle(rank), Layout::GAPS][(i + j) % 3];
            let update = Update { rank, p, z, residual: rank == 3 };
            check(&w, 37, Product::Forward, update, &[""], &mut random);
            check(&w, 37, Product::Back { limbs: 2, add: false }, update, &[""], &mut random);
        }
    }
}

#[test]
fn an_update_behind_mixed_scales() {
    let mut random = Random(24);
    let w = Weights::new(Dtype::TQ2_0, 512, 256, Scales::Mixed, &mut random);
    check(&w, 35, Product::Forward, PLAIN, &[""], &mut random);
    check(&w, 35, Product::Back { limbs: 2, add: true }, PLAIN, &[""], &mut random);
}
