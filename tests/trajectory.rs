//! Whole runs: the loss falls, and how a run is cut up, packed, interrupted or spread over threads and devices changes
//! nothing but what rounding allows, or nothing at all.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::device::{cpu, vulkan};
use common::numeric::{
    distance, engine, lora, nano, pico, randomize, rewritten, samples, ternary_models, write_model, Setup,
};
use qvac_ft::data::{ordered_rows, Dataset, LossOn, PackMode};
use qvac_ft::ggml::{Device, Dtype};
use qvac_ft::synth::Family;
use qvac_ft::train::{
    latest_checkpoint, AdamW, Checkpoint, Cursor, Decay, EvalRecord, How, MicroBatch, Observer, Recompute,
    RunConfig, Schedule, StepRecord, Stop, Trainer,
};

/// Relative difference of a step's loss between two ways of cutting a batch: the same f32 losses, added in another order.
const SAME_LOSS: f64 = 1e-6;
/// Relative difference of the parameters after three such steps. Where a gradient is near zero AdamW divides noise by
/// noise, so single values move by more than the rounding of the sums.
const SAME_UPDATE: f64 = 1e-4;
/// Relative difference of a sample's loss between places in a row: attention's sums skip other zeros.
const SAME_SAMPLE: f64 = 1e-5;
/// Relative difference of a step's loss between devices, whose activations are rounded differently.
const SAME_ON_DEVICES: f64 = 1e-3;

const SEQ_LEN: usize = 32;

fn dataset(seed: u64, lengths: &[usize]) -> Dataset {
    Dataset { samples: samples(seed, lengths), label_tasks: Vec::new(), stats: Default::default() }
}

/// Sixteen samples of unequal lengths and masks; some rows have a target or two, others twenty.
fn data() -> Dataset {
    let mut data = dataset(31, &[32, 7, 21, 30, 12, 9, 28, 32, 17, 5, 26, 31, 14, 11, 29, 24]);
    for sample in data.samples.iter_mut().step_by(3) {
        let n = sample.len();
        sample.train = (0..n).map(|i| i + 1 == n).collect();
    }
    data
}

fn config(rows_per_step: usize, steps: u64, save_every: u64) -> RunConfig {
    let how = How {
        device: "cpu".into(),
        device_description: String::new(),
        threads: 1,
        micro_batch_rows: 0,
        recompute: true,
        eval_data: None,
        eval_every: 0,
        save_every,
        build: None,
    };
    RunConfig {
        version: "0".into(),
        model: PathBuf::new(),
        model_hash: String::new(),
        data: PathBuf::new(),
        data_hash: String::new(),
        seed: 5,
        epochs: 100,
        schedule: Schedule { lr: 5e-3, decay: Decay::Linear, warmup: 0, total: steps },
        adamw: AdamW::default(),
        rank: 4,
        alpha: 8.0,
        targets: Vec::new(),
        init_adapter: None,
        seq_len: SEQ_LEN,
        backward_limbs: 2,
        exact: None,
        batch_tokens: rows_per_step * SEQ_LEN,
        pack: PackMode::NoPack,
        loss_on: LossOn::Assistant,
        chat_template: None,
        template_time: 0,
        how,
    }
}

/// Keeps the records, and asks for a stop after a step.
#[derive(Default)]
struct Watch {
    records: Vec<StepRecord>,
    stop_after: Option<u64>,
    interrupt: AtomicBool,
}

impl Watch {
    fn losses(&self) -> Vec<f64> {
        self.records.iter().map(|r| r.loss).collect()
    }
}

/// Borrowed by the trainer while its flag is watched.
struct Eyes<'a>(&'a mut Vec<StepRecord>, Option<u64>, &'a AtomicBool);

impl Observer for Eyes<'_> {
    fn step(&mut self, record: &StepRecord, _total: u64) {
        self.0.push(record.clone());
        if self.1 == Some(record.step) {
            self.2.store(true, Ordering::SeqCst);
        }
    }

    fn evaluation(&mut self, _record: &EvalRecord) {}
}

/// Trains in a fresh process's place: a new engine, from the newest checkpoint in `out` if there is one.
fn run(
    model: &Path,
    setup: &Setup,
    config: &RunConfig,
    out: &Path,
    stop_after: Option<u64>,
) -> (Watch, Stop) {
    let data = data();
    let engine = engine(model, setup);
    let mut cursor = Cursor { step: 0, epoch: 0, row: 0 };
    match latest_checkpoint(out).unwrap() {
        Some(path) => {
            let checkpoint = Checkpoint::load(&path).unwrap();
            checkpoint.restore(lora(&engine), &path).unwrap();
            cursor = checkpoint.cursor;
        }
        None => lora(&engine).init(config.seed).unwrap(),
    }
    let mut watch = Watch { stop_after, ..Watch::default() };
    let mut trainer = Trainer {
        config,
        engine: &engine,
        train: &data,
        eval: None,
        out: out.into(),
        cursor,
        watch: Default::default(),
    };
    let mut eyes = Eyes(&mut watch.records, watch.stop_after, &watch.interrupt);
    let report = trainer.run(&mut eyes, &watch.interrupt).unwrap();
    assert_eq!(report.steps, watch.records.last().expect("a step was done").step);
    (watch, report.stop)
}

/// The state that a finished run left.
fn final_state(out: &Path) -> Checkpoint {
    Checkpoint::load(&latest_checkpoint(out).unwrap().expect("a checkpoint is there")).unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The same numbers, to the last bit.
fn assert_same_state(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.cursor, b.cursor);
    assert_eq!(bits(&a.params), bits(&b.params), "parameters");
    assert_eq!(bits(&a.m), bits(&b.m), "first moments");
    assert_eq!(bits(&a.v), bits(&b.v), "second moments");
    assert!(a.params.iter().any(|p| *p != 0.0) && a.v.iter().any(|v| *v != 0.0));
}

fn assert_close(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let error = (a - b).abs() / b.abs();
        assert!(error <= tolerance, "{what} {i}: {a} and {b} differ by {error:.1e}");
    }
}

/// A model of each architecture with either ternary type.
fn each_ternary(check: impl Fn(&str, &Path)) {
    for config in ternary_models() {
        let dir = tempfile::tempdir().unwrap();
        let case = format!("{} {}", config.family.architecture(), config.dtype);
        eprintln!("{case}");
        check(&case, &write_model(&config, dir.path()));
    }
}

fn ternary(family: Family, dir: &Path) -> PathBuf {
    write_model(&nano(family, Dtype::TQ2_0), dir)
}

fn smooth(dir: &Path) -> PathBuf {
    rewritten(&write_model(&pico(Family::Bitnet), dir), true, &[])
}

#[test]
fn ten_losses_fall() {
    for model in ternary_models().chain([nano(Family::Llama, Dtype::Q8_0)]) {
        let (family, dtype) = (model.family, model.dtype);
        let dir = tempfile::tempdir().unwrap();
        let model = write_model(&model, dir.path());
        // All data in each step, so that the losses can be compared.
        let config = config(16, 10, 0);
        let (watch, stop) = run(&model, &Setup::training(&cpu(), SEQ_LEN, 8), &config, dir.path(), None);
        let losses = watch.losses();
        eprintln!("{family:?} {dtype}: {losses:.3?}");
        assert_eq!((stop, losses.len()), (Stop::Finished, 10));
        // ln(512) is 6.24.
        assert!((losses[0] - 6.27).abs() < 0.3, "it begins as a guess among 512: {losses:?}");
        assert!(losses.windows(2).all(|w| w[1] < w[0]), "{losses:?}");
        assert!(losses[9] < losses[0] - 0.8, "{losses:?}");
    }
}

#[test]
fn one_batch_of_eight_is_two_of_four() {
    let dir = tempfile::tempdir().unwrap();
    let model = smooth(dir.path());
    let config = config(8, 3, 0);
    let cut = |n_rows: usize| {
        let out = tempfile::tempdir().unwrap();
        let (watch, _) = run(&model, &Setup::training(&cpu(), SEQ_LEN, n_rows), &config, out.path(), None);
        (watch, final_state(out.path()))
    };
    let (eight, state) = cut(8);
    // Three does not divide eight: the last micro-batch is filled up.
    for n_rows in [4, 3, 1] {
        let (other, other_state) = cut(n_rows);
        assert_close("loss", &other.losses(), &eight.losses(), SAME_LOSS);
        let error = distance(&other_state.params, &state.params);
        eprintln!("8 rows at once and {n_rows}: {error:.1e}");
        assert!(error <= SAME_UPDATE, "{n_rows} rows at a time: {error:e}");
    }
    let (a, b) = (&data().samples[..], |s: &qvac_ft::data::Sample| s.n_targets());
    assert!(a.iter().map(b).min() < a.iter().map(b).max(), "the masks are unequal");
}

#[test]
fn a_resumed_run_is_the_straight_run_bit_for_bit() {
    // Five rows a step of sixteen: epochs end in the middle, with a short step.
    let config = config(5, 6, 0);
    let setup = Setup::training(&cpu(), SEQ_LEN, 2);
    each_ternary(|case, model| {
        let straight = tempfile::tempdir().unwrap();
        let (whole, _) = run(model, &setup, &config, straight.path(), None);
        for stop_after in [1, 3, 4] {
            let out = tempfile::tempdir().unwrap();
            let (first, stop) = run(model, &setup, &config, out.path(), Some(stop_after));
            assert_eq!((stop, first.records.len() as u64), (Stop::Interrupted, stop_after));
            let (second, stop) = run(model, &setup, &config, out.path(), None);
            assert_eq!(stop, Stop::Finished);
            assert_eq!([first.losses(), second.losses()].concat(), whole.losses(), "{case}");
            assert_same_state(&final_state(out.path()), &final_state(straight.path()));
        }
    });
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = ternary(Family::Llama, dir.path());
    let config = config(5, 5, 2);
    let setup = Setup::training(&cpu(), SEQ_LEN, 2);
    let out = tempfile::tempdir().unwrap();
    let (whole, _) = run(&model, &setup, &config, out.path(), None);
    let straight = final_state(out.path());
    let metrics = out.path().join("metrics.jsonl");
    assert_eq!(std::fs::read_to_string(&metrics).unwrap().lines().count(), 5);
    // As if killed during step 5, while its line was being written.
    std::fs::remove_dir_all(out.path().join("checkpoints/step-5")).unwrap();
    let text = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(&metrics, &text[..text.len() - 20]).unwrap();
    let (rest, _) = run(&model, &setup, &config, out.path(), None);
    assert_eq!(rest.losses(), whole.losses()[4..]);
    assert_same_state(&final_state(out.path()), &straight);
    let steps: Vec<u64> = std::fs::read_to_string(&metrics)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str::<StepRecord>(l).unwrap().step)
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5], "each step once");
}

#[test]
fn packing_changes_no_sample() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (model, tolerance) in [
        (smooth(dir.path()), SAME_SAMPLE),
        // Per-token integers are the same wherever a token stands; only the head's and attention's sums differ.
        (ternary(Family::Bitnet, other.path()), SAME_ON_DEVICES),
    ] {
        let samples = data().samples;
        let engine = engine(&model, &Setup { recompute: None, ..Setup::training(&cpu(), SEQ_LEN, 4) });
        randomize(lora(&engine), 8);
        let per_sample = |mode| {
            let mut sums = vec![0.0; samples.len()];
            let rows = ordered_rows(&samples, SEQ_LEN, mode).unwrap();
            for rows in rows.chunks(4) {
                let batch = MicroBatch::new(rows, 4, SEQ_LEN);
                for (target, loss) in batch.targets.iter().zip(engine.losses(&batch, &batch.targets).unwrap())
                {
                    let (row, at) = (&rows[target.at as usize / SEQ_LEN], target.at as usize % SEQ_LEN);
                    sums[row.samples[row.segments[at] as usize]] += f64::from(loss);
                }
            }
            (sums, rows.len())
        };
        let ((packed, n_packed), (padded, n_padded)) =
            (per_sample(PackMode::Pack), per_sample(PackMode::NoPack));
        assert!(n_packed < n_padded, "{n_packed} rows, {n_padded} padded");
        assert_close("sample", &packed, &padded, tolerance);
    }
}

#[test]
fn threads_change_no_bit() {
    for (family, dtype) in [(Family::Bitnet, Dtype::TQ2_0), (Family::Llama, Dtype::F16)] {
        let dir = tempfile::tempdir().unwrap();
        let model = write_model(&nano(family, dtype), dir.path());
        let config = config(4, 3, 0);
        let with = |threads| {
            let out = tempfile::tempdir().unwrap();
            let setup = Setup { threads, ..Setup::training(&cpu(), SEQ_LEN, 2) };
            let (watch, _) = run(&model, &setup, &config, out.path(), None);
            (watch.losses(), final_state(out.path()))
        };
        let ((losses, one), (losses_of_two, two)) = (with(1), with(2));
        assert_eq!(losses, losses_of_two);
        assert_same_state(&one, &two);
    }
}

#[test]
fn keeping_blocks_changes_no_step() {
    let config = config(4, 3, 0);
    each_ternary(|_, model| {
        let with = |recompute| {
            let out = tempfile::tempdir().unwrap();
            let setup = Setup { recompute: Some(recompute), ..Setup::training(&cpu(), SEQ_LEN, 2) };
            run(model, &setup, &config, out.path(), None);
            final_state(out.path())
        };
        assert_same_state(&with(Recompute::On), &with(Recompute::Off));
    });
}

#[test]
fn vulkan_follows_the_cpu() {
    let Some(vulkan) = vulkan() else { return };
    let config = config(2, 3, 0);
    each_ternary(|case, model| {
        let on = |device: &Device| {
            let out = tempfile::tempdir().unwrap();
            let setup = Setup { threads: 2, ..Setup::training(device, SEQ_LEN, 2) };
            run(model, &setup, &config, out.path(), None).0.losses()
        };
        let (found, expected) = (on(&vulkan), on(&cpu()));
        eprintln!("{}: {found:.5?}, cpu: {expected:.5?}", vulkan.name());
        assert_close(&format!("{case}, loss of step"), &found, &expected, SAME_ON_DEVICES);
    });
}
