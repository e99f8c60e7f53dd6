use std::path::Path;

use super::*;
use crate::ggml::Dtype;
use crate::model::Target;
use crate::synth;
use crate::train::AdamW;

fn empty_nano(dir: &Path) -> GgufFile {
    let path = dir.join("nano.gguf");
    let shape = synth::find_shape("nano").unwrap();
    synth::write_empty(&synth::Config::new(*shape, Dtype::TQ2_0, 1), &path).unwrap();
    GgufFile::open(&path).unwrap()
}

fn request() -> Request {
    let training = TrainingConfig { recompute: Recompute::On, adamw: AdamW::default(), backward_limbs: 2 };
    Request {
        seq_len: 128,
        rows_per_step: 10,
        n_rows: None,
        lora: Some(LoraConfig { rank: 8, alpha: 16.0, targets: Target::ALL.to_vec() }),
        training: Some(training),
        any_recompute: false,
    }
}

fn room(bytes: usize) -> Room {
    Room { free_bytes: None, limit_bytes: None, usable_bytes: Some(bytes as u64) }
}

fn planner() -> Planner {
    let dir = tempfile::tempdir().unwrap();
    let file = empty_nano(dir.path());
    Planner::new(&file, &Backend::new(&Device::by_name("cpu").unwrap(), 1).unwrap()).unwrap()
}

#[test]
fn the_most_rows_that_fit_are_found_and_spread_evenly() {
    let planner = planner();
    let rows = |n: usize| planner.fit(&request(), n).unwrap().memory.total();
    assert!(rows(1) < rows(4) && rows(4) < rows(10));
    let chosen = |bytes| planner.choose(&request(), &room(bytes)).unwrap().map(|fit| fit.n_rows);
    assert_eq!(chosen(rows(10)), Some(10));
    assert_eq!(chosen(rows(5)), Some(5));
    // Nine fit, but ten are two micro-batches either way.
    assert_eq!(chosen(rows(10) - 1), Some(5));
    assert_eq!(chosen(rows(4)), Some(4), "ten are three times four");
    assert_eq!(chosen(rows(1)), Some(1));
    assert_eq!(chosen(rows(1) - 1), None);
    let unknown = Room { free_bytes: None, limit_bytes: None, usable_bytes: None };
    assert_eq!(planner.choose(&request(), &unknown).unwrap().map(|fit| fit.n_rows), Some(10));
}

#[test]
fn nothing_is_computed_twice_where_there_is_room_for_all() {
    let planner = planner();
    let free = Request { any_recompute: true, ..request() };
    let chosen = |bytes| planner.choose(&free, &room(bytes)).unwrap().unwrap();
    let fit = chosen(usize::MAX);
    assert_eq!((fit.n_rows, fit.recompute), (10, Some(Recompute::Off)));
    let kept = fit.memory.total();
    let fit = chosen(kept - 1);
    assert_eq!((fit.n_rows, fit.recompute), (10, Some(Recompute::On)));
}

#[test]
fn what_does_not_fit_is_told_what_would() {
    let planner = planner();
    let least = planner.fit(&request(), 1).unwrap().memory;
    let asked = Request { n_rows: Some(10), ..request() };
    let remedies = planner.remedies(&asked, &room(least.total())).unwrap();
    assert_eq!(remedies[0].n_rows, 1, "{remedies:?}");
    assert_eq!((remedies[0].seq_len, remedies[0].rank), (128, 8));
    for fit in planner.remedies(&request(), &room(least.total() - 1)).unwrap() {
        assert!(fit.seq_len < 128 || fit.rank < 8, "{fit:?}");
        assert!(fit.memory.total() < least.total());
    }
    assert!(planner.remedies(&request(), &room(least.weights)).unwrap().is_empty(), "the weights alone");
}
