//! The functions of exact-math.h through the ops that are made of them: the same bits everywhere, and their errors against f64.
//!
//! Every 1021st float is taken, or with `QVAC_EXACT_MATH=N` every Nth: all of them take an hour or so. The errors are printed
//! (`--nocapture`); docs/exactness.md has those of every 11th.

use qvac_ft::ggml::{Context, Dtype, Function, Result, Tensor};

use super::same;

/// Floats of one graph.
const CHUNK: usize = 1 << 20;

/// Every float, or every so manyeth, a chunk at a time.
fn floats() -> impl Iterator<Item = Vec<f32>> {
    let stride = match std::env::var("QVAC_EXACT_MATH") {
        Ok(stride) => stride.parse().expect("QVAC_EXACT_MATH is a number"),
        Err(_) => 1021,
    };
    let bits =
        move |first: u64| (first..1 << 32).step_by(stride).take(CHUNK).map(|b| f32::from_bits(b as u32));
    (0..1u64 << 32).step_by(CHUNK * stride).map(move |first| bits(first).collect())
}

/// A unit in the last place of the f32 next to `w`.
fn ulp(w: f64) -> f64 {
    let exponent = (w.abs().to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent.max(-126) - 23)
}

/// How an error is counted.
#[derive(Clone, Copy)]
enum Class {
    Ulps,
    Absolute,
}

/// Holds `f` at the floats of `[low, high]` and their negatives where `low` is 0 to `reference`.
struct Held {
    name: &'static str,
    op: fn(&Context, &Tensor) -> Result<Tensor>,
    reference: fn(f64) -> f64,
    low: f32,
    high: f32,
    class: Class,
    bound: f64,
}

const TABLE: [Held; 9] = [
    Held {
        name: "exp",
        op: |c, x| c.function(Function::Exp, x),
        reference: f64::exp,
        low: -87.3,
        high: 88.0,
        class: Class::Ulps,
        bound: 1.0,
    },
    Held {
        name: "log above e",
        op: |c, x| c.function(Function::Log, x),
        reference: f64::ln,
        low: std::f32::consts::E,
        high: f32::MAX,
        class: Class::Ulps,
        bound: 2.0,
    },
    Held {
        name: "log from 1/e to e",
        op: |c, x| c.function(Function::Log, x),
        reference: f64::ln,
        low: 1.0 / std::f32::consts::E,
        high: std::f32::consts::E,
        class: Class::Absolute,
        bound: 1.2e-7,
    },
    Held {
        name: "log below 1/e",
        op: |c, x| c.function(Function::Log, x),
        reference: f64::ln,
        low: 1e-45,
        high: 1.0 / std::f32::consts::E,
        class: Class::Ulps,
        bound: 2.0,
    },
    Held {
        name: "sqrt",
        op: |c, x| c.function(Function::Sqrt, x),
        reference: f64::sqrt,
        low: f32::MIN_POSITIVE,
        high: f32::MAX,
        class: Class::Ulps,
        bound: 2.0,
    },
    Held {
        name: "sin",
        op: |c, x| c.function(Function::Sin, x),
        reference: f64::sin,
        low: -1e6,
        high: 1e6,
        class: Class::Absolute,
        bound: 1.2e-7,
    },
    Held {
        name: "cos",
        op: |c, x| c.function(Function::Cos, x),
        reference: f64::cos,
        low: -1e6,
        high: 1e6,
        class: Class::Absolute,
        bound: 1.2e-7,
    },
    Held {
        name: "sigmoid",
        op: |c, x| c.function(Function::Sigmoid, x),
        reference: |x| 1.0 / (1.0 + (-x).exp()),
        low: -87.0,
        high: f32::MAX,
        class: Class::Ulps,
        bound: 3.0,
    },
    Held {
        name: "silu",
        op: |c, x| c.function(Function::Silu, x),
        reference: |x| x / (1.0 + (-x).exp()),
        low: -80.0,
        high: f32::MAX,
        class: Class::Ulps,
        bound: 3.5,
    },
];

/// The largest error of `held` among `x`, and where it is.
fn largest(held: &Held, x: &[f32], y: &[f32]) -> (f64, f32) {
    let mut most = (0.0, 0.0);
    for (&x, &y) in x.iter().zip(y) {
        if x < held.low || x > held.high || x.is_nan() {
            continue;
        }
        let want = (held.reference)(f64::from(x));
        let error = (f64::from(y) - want).abs();
        let error = match held.class {
            Class::Ulps => error / ulp(want),
            Class::Absolute => error,
        };
        if error > most.0 || error.is_nan() {
            most = (error, x);
        }
    }
    most
}

#[test]
fn functions() {
    let mut most = [(0.0f64, 0.0f32); TABLE.len()];
    for x in floats() {
        let mut last: Option<(&str, Vec<f32>)> = None;
        for (held, most) in TABLE.iter().zip(&mut most) {
            let name = held.name.split(' ').next().expect("a name");
            let y = match last.take() {
                Some((made, y)) if made == name => y,
                _ => same(&format!("{name} from {:08x}", x[0].to_bits()), |mut t| {
                    let x = t.f32(&[x.len() as i64], &x);
                    let y = (held.op)(&t.ops, &x).unwrap();
                    t.run(&y)
                }),
            };
            let here = largest(held, &x, &y);
            if here.0 > most.0 || here.0.is_nan() {
                *most = here;
            }
            last = Some((name, y));
        }
    }
    for (held, (error, at)) in TABLE.iter().zip(most) {
        let unit = match held.class {
            Class::Ulps => "ulp",
            Class::Absolute => "absolute",
        };
        eprintln!("{:20} {error:.3e} {unit} at {at:e}", held.name);
        assert!(error <= held.bound, "{}: {error} at {at:e}, expected {} {unit}", held.name, held.bound);
    }
}

/// 1/x: beyond 2^126 it is 0, below 2^-126 infinite.
#[test]
fn reciprocals() {
    let mut most = 0.0f64;
    for x in floats() {
        let y = same("1/x", |mut t| {
            let one = t.f32(&[x.len() as i64], &vec![1.0; x.len()]);
            let x = t.f32(&[x.len() as i64], &x);
            let y = t.ops.div(&one, &x).unwrap();
            t.run(&y)
        });
        for (&x, &y) in x.iter().zip(&y) {
            match x.abs() {
                a if a.is_nan() => assert!(y.is_nan()),
                a if a >= 2f32.powi(126) => assert!(y == 0.0 && y.is_sign_negative() == x.is_sign_negative()),
                a if a < f32::MIN_POSITIVE => assert!(y.is_infinite() && (y < 0.0) == x.is_sign_negative()),
                _ => most = most.max((f64::from(y) - 1.0 / f64::from(x)).abs() / ulp(1.0 / f64::from(x))),
            }
        }
    }
    eprintln!("{:20} {most:.3e} ulp", "recip");
    assert!(most <= 2.0, "recip: {most} ulp");
}

/// What the functions make of what is no ordinary number.
#[test]
fn special_values() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let x = [0.0, -0.0, inf, -inf, nan, 1e-45, -1.0, 200.0, -200.0];
    let largest = 1.651_636_4e38; // e^88
    let cases: [(Function, [f32; 9]); 5] = [
        (Function::Exp, [1.0, 1.0, largest, 0.0, nan, 1.0, 0.367_879_45, largest, 0.0]),
        (Function::Log, [-inf, -inf, inf, nan, nan, -103.278_93, nan, 5.298_317_4, nan]),
        (Function::Sqrt, [0.0, -0.0, inf, nan, nan, 0.0, nan, 14.142_136, nan]),
        (Function::Sin, [0.0, 0.0, nan, nan, nan, 0.0, -0.841_471, -0.873_297_3, 0.873_297_3]),
        (Function::Relu, [0.0, 0.0, inf, 0.0, 0.0, 1e-45, 0.0, 200.0, 0.0]),
    ];
    for (f, want) in cases {
        let got = same(&format!("{f:?}"), |mut t| {
            let x = t.f32(&[9], &x);
            let y = t.ops.function(f, &x).unwrap();
            t.run(&y)
        });
        for ((x, got), want) in x.iter().zip(got).zip(want) {
            let near = (got - want).abs() <= 2e-7 * want.abs();
            assert!(
                got == want || near || (got.is_nan() && want.is_nan()),
                "{f:?}({x}) is {got}, expected {want}"
            );
        }
    }
}

/// Every f16 there and back, and floats to the nearest f16.
#[test]
fn f16() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_ne_bytes).collect();
    let wide = same("from f16", |mut t| {
        let to = t.f32(&[1 << 16], &vec![0.0; 1 << 16]);
        let x = t.bytes(Dtype::F16, &[1 << 16], all.clone());
        let y = t.ops.cpy(&x, &to).unwrap();
        t.run_then_read(&y, &to)
    });
    for (h, y) in wide.iter().enumerate() {
        let want = half::f16::from_bits(h as u16);
        assert!(
            want.to_f32().to_bits() == y.to_bits() || (want.is_nan() && y.is_nan()),
            "{h:04x} became {y}"
        );
    }
    for x in floats() {
        let narrow = super::same_bytes("to f16", |mut t| {
            let to = t.bytes(Dtype::F16, &[x.len() as i64], vec![0; 2 * x.len()]);
            let x = t.f32(&[x.len() as i64], &x);
            let y = t.ops.cpy(&x, &to).unwrap();
            t.run_then_read_bytes(&y, &to)
        });
        for (&x, h) in x.iter().zip(narrow.chunks(2)) {
            let h = half::f16::from_ne_bytes(h.try_into().unwrap());
            let want = half::f16::from_f32(x);
            assert!(h.to_bits() == want.to_bits() || (h.is_nan() && want.is_nan()), "{x:e} became {h:e}");
        }
    }
}
