//! A run's state on disk.
//!
//! ```text
//! RUN/config.json               the run's settings
//! RUN/checkpoints/step-12/      state.safetensors: params, m, v (flat, f32); state.json: step and cursor
//! ```
//! A checkpoint is written to a temporary name, synced and renamed: a kill at any moment leaves either the old state or
//! the new one. The order of the data is a function of (seed, epoch), so the cursor is all the random state there is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::model::Lora;

use super::error::{Error, Result};

/// Checkpoints that are kept; older ones are removed.
const KEPT: usize = 2;
const TENSORS: &str = "state.safetensors";
const STATE: &str = "state.json";

/// Where a run stands in its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Optimizer steps done.
    pub step: u64,
    pub epoch: u64,
    /// Rows of the epoch that have been trained on.
    pub row: usize,
}

/// The numbers that training changes, on the host; flat, of the adapter's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub cursor: Cursor,
    pub params: Vec<f32>,
    pub m: Vec<f32>,
    pub v: Vec<f32>,
}

impl Checkpoint {
    /// Reads the state off the device.
    pub fn capture(lora: &Lora, cursor: Cursor) -> Result<Self> {
        let training = lora.training.as_ref().ok_or(Error::NotTraining)?;
        Ok(Self {
            cursor,
            params: lora.params.download()?,
            m: training.m.download()?,
            v: training.v.download()?,
        })
    }

    /// Puts the state back onto the device.
    pub fn restore(&self, lora: &Lora, path: &Path) -> Result<()> {
        let training = lora.training.as_ref().ok_or(Error::NotTraining)?;
        if self.params.len() != lora.params.n_elements() {
            let reason =
                format!("expected {} parameters, found {}", lora.params.n_elements(), self.params.len());
            return Err(Error::Damaged { path: path.into(), reason });
        }
        lora.params.upload(&self.params)?;
        training.m.upload(&self.m)?;
        Ok(training.v.upload(&self.v)?)
    }

    /// Writes it below `run`, and removes all but the newest [`KEPT`].
    pub fn save(&self, run: &Path) -> Result<PathBuf> {
        let parent = run.join("checkpoints");
        fs::create_dir_all(&parent).map_err(io("create", &parent))?;
        let temporary =
            tempfile::Builder::new().prefix(".step-").tempdir_in(&parent).map_err(io("create", &parent))?;
        let write = |name: &str, bytes: &[u8]| -> Result<()> {
            let path = temporary.path().join(name);
            fs::write(&path, bytes).map_err(io("write", &path))?;
            File::open(&path).and_then(|f| f.sync_all()).map_err(io("sync", &path))
        };
        write(TENSORS, &self.serialize())?;
        write(STATE, serde_json::to_string_pretty(&self.cursor).expect("plain data").as_bytes())?;

        let path = parent.join(format!("step-{}", self.cursor.step));
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io("replace", &path))?;
        }
        fs::rename(temporary.path(), &path).map_err(io("rename to", &path))?;
        // It has its final name now: the guard must not remove it.
        let _ = temporary.keep();
        File::open(&parent).and_then(|f| f.sync_all()).map_err(io("sync", &parent))?;
        for old in list(run)?.into_iter().rev().skip(KEPT) {
            fs::remove_dir_all(&old.1).map_err(io("remove", &old.1))?;
        }
        Ok(path)
    }

    fn serialize(&self) -> Vec<u8> {
        let parts = [("params", &self.params), ("m", &self.m), ("v", &self.v)];
        let bytes: Vec<(&str, Vec<u8>)> = parts
            .iter()
            .map(|(name, data)| (*name, data.iter().flat_map(|f| f.to_le_bytes()).collect()))
            .collect();
        let views: BTreeMap<_, _> = bytes
            .iter()
            .map(|(name, b)| {
                let view = TensorView::new(Dtype::F32, vec![b.len() / 4], b).expect("four bytes per float");
                (*name, view)
            })
            .collect();
        safetensors::serialize(views, None).expect("the views are consistent")
    }

    /// Reads the checkpoint in the folder `path`.
    pub fn load(path: &Path) -> Result<Self> {
        let damaged = |path: &Path, reason: String| Error::Damaged { path: path.into(), reason };
        let state = path.join(STATE);
        let text = fs::read(&state).map_err(io("read", &state))?;
        let cursor = serde_json::from_slice(&text).map_err(|e| damaged(&state, e.to_string()))?;
        let tensors = path.join(TENSORS);
        let bytes = fs::read(&tensors).map_err(io("read", &tensors))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&tensors, e.to_string()))?;
        let read = |name: &str| -> Result<Vec<f32>> {
            let view = file.tensor(name).map_err(|e| damaged(&tensors, e.to_string()))?;
            if view.dtype() != Dtype::F32 {
                return Err(damaged(&tensors, format!("`{name}` is not f32")));
            }
            Ok(view.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
        };
        let checkpoint = Self { cursor, params: read("params")?, m: read("m")?, v: read("v")? };
        let n = checkpoint.params.len();
        if checkpoint.m.len() != n || checkpoint.v.len() != n {
            return Err(damaged(&tensors, "its parts differ in length".into()));
        }
        Ok(checkpoint)
    }
}

/// The newest checkpoint of a run.
pub fn latest(run: &Path) -> Result<Option<PathBuf>> {
    Ok(list(run)?.pop().map(|(_, path)| path))
}

/// All checkpoints, the oldest first.
fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let parent = run.join("checkpoints");
    let entries = match fs::read_dir(&parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io("read", &parent)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(io("read", &parent))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-"));
        if let Some(step) = name.and_then(|n| n.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64) -> Checkpoint {
        let values = |scale: f32| (0..100).map(|i| scale * (i as f32 + step as f32)).collect::<Vec<f32>>();
        Checkpoint {
            cursor: Cursor { step, epoch: 2, row: 17 },
            params: values(0.1),
            m: values(-1e-30),
            v: values(f32::MIN_POSITIVE / 8.0),
        }
    }

    fn names(run: &Path) -> Vec<String> {
        let entries = fs::read_dir(run.join("checkpoints")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn it_comes_back_bit_for_bit() {
        let run = tempfile::tempdir().unwrap();
        let path = checkpoint(3).save(run.path()).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint(3));
        assert_eq!(latest(run.path()).unwrap(), Some(path));
    }

    #[test]
    fn the_newest_two_are_kept_by_number_not_by_name() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(latest(run.path()).unwrap(), None);
        for step in [8, 9, 10] {
            checkpoint(step).save(run.path()).unwrap();
        }
        assert_eq!(names(run.path()), ["step-10", "step-9"]);
        assert_eq!(latest(run.path()).unwrap(), Some(run.path().join("checkpoints/step-10")));
    }

    #[test]
    fn a_step_is_replaced_whole() {
        let run = tempfile::tempdir().unwrap();
        checkpoint(5).save(run.path()).unwrap();
        let mut other = checkpoint(5);
        other.params[7] = 42.0;
        let path = other.save(run.path()).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), other);
        assert_eq!(names(run.path()), ["step-5"], "no temporary folder is left");
    }

    /// What a kill leaves before the rename is a folder with a temporary name.
    #[test]
    fn half_written_ones_are_passed_over() {
        let run = tempfile::tempdir().unwrap();
        let whole = checkpoint(1).save(run.path()).unwrap();
        let half = run.path().join("checkpoints/.step-abc");
        fs::create_dir(&half).unwrap();
        fs::write(half.join(TENSORS), b"half").unwrap();
        assert_eq!(latest(run.path()).unwrap(), Some(whole));
    }

    #[test]
    fn a_failed_save_leaves_the_old_one() {
        let run = tempfile::tempdir().unwrap();
        let old = checkpoint(1).save(run.path()).unwrap();
        // A file in the place of the next one's folder.
        fs::write(run.path().join("checkpoints/step-2"), b"in the way").unwrap();
        let error = checkpoint(2).save(run.path()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(Checkpoint::load(&old).unwrap(), checkpoint(1));
        assert_eq!(names(run.path()), ["step-1", "step-2"]);
    }

    #[test]
    fn damage_is_named_by_file() {
        let broken = |name: &str, edit: &dyn Fn(Vec<u8>) -> Vec<u8>| {
            let run = tempfile::tempdir().unwrap();
            let path = checkpoint(1).save(run.path()).unwrap();
            let file = path.join(name);
            fs::write(&file, edit(fs::read(&file).unwrap())).unwrap();
            match Checkpoint::load(&path).unwrap_err() {
                Error::Damaged { path, reason } => {
                    assert_eq!(path, file);
                    assert!(!reason.is_empty());
                }
                other => panic!("{other}"),
            }
        };
        broken(TENSORS, &|bytes| bytes[..bytes.len() - 4].to_vec());
        broken(TENSORS, &|_| Vec::new());
        broken(STATE, &|bytes| bytes[..bytes.len() / 2].to_vec());
        broken(STATE, &|_| b"{\"step\": 1}".to_vec());
        broken(TENSORS, &|_| Checkpoint { v: vec![0.0; 99], ..checkpoint(1) }.serialize());
        let run = tempfile::tempdir().unwrap();
        let path = checkpoint(1).save(run.path()).unwrap();
        fs::remove_file(path.join(TENSORS)).unwrap();
        assert!(matches!(Checkpoint::load(&path), Err(Error::Io { action: "read", .. })));
    }
}
