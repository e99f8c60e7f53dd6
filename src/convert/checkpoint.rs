//! The weights of a Hugging Face folder: one safetensors file, or several with an index.
//!
//! Files are mapped, not read: a tensor's bytes come from the disk when they are converted and go when memory is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;
use safetensors::{Dtype as SafeDtype, SafeTensors};
use serde_json::Value;

use super::error::{Error, Result};
use crate::ggml::FileMap;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

struct Shard {
    path: PathBuf,
    map: FileMap,
    /// Where the tensors' data begins.
    data: usize,
}

/// All tensors of a folder, by name.
pub(super) struct Checkpoint {
    pub dir: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

/// One tensor, as it lies in its file.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub path: &'a Path,
    pub name: &'a str,
    pub dtype: SafeDtype,
    /// Rows first.
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// Reads a JSON file.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let text =
        fs::read(path).map_err(|source| Error::Io { path: path.into(), action: "read the file", source })?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.into(), source })
}

/// The same, if the file is there.
pub(super) fn read_json_if_there(path: &Path) -> Result<Option<Value>> {
    path.exists().then(|| read_json(path)).transpose()
}

impl Checkpoint {
    /// Opens every file of the weights and holds their tables against their lengths and against the index.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let mut found = Self { dir: dir.into(), shards: Vec::new(), tensors: BTreeMap::new() };
        let index_path = dir.join(INDEX);
        if index_path.exists() {
            let index = index(&index_path)?;
            let names: BTreeSet<&String> = index.values().collect();
            for name in names {
                let path = dir.join(name);
                if !path.exists() {
                    let n_tensors = index.values().filter(|shard| *shard == name).count();
                    return Err(Error::MissingShard { path, index: INDEX, n_tensors });
                }
                found.add_shard(path)?;
            }
            for (tensor, shard) in &index {
                let path = dir.join(shard);
                if found.tensors.get(tensor).is_none_or(|(at, _)| found.shards[*at].path != path) {
                    return Err(Error::MissingTensor { path, tensor: tensor.clone() });
                }
            }
        } else if dir.join(SINGLE).exists() {
            found.add_shard(dir.join(SINGLE))?;
        } else {
            return Err(Error::NoWeights { dir: dir.into() });
        }
        Ok(found)
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<()> {
        let map = FileMap::open(&path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|source| Error::Safetensors { path: path.clone(), source })?;
        let at = self.shards.len();
        for (name, info) in metadata.tensors() {
            self.tensors.insert(name, (at, info.clone()));
        }
        // The table's own length stands in the first eight bytes.
        self.shards.push(Shard { path, map, data: header + 8 });
        Ok(())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The file a tensor is in, or the folder if it is in none.
    pub(super) fn place(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(&self.dir, |(at, _)| &self.shards[*at].path)
    }

    pub(super) fn get(&self, name: &str) -> Option<Source<'_>> {
        let (name, (at, info)) = self.tensors.get_key_value(name)?;
        let shard = &self.shards[*at];
        let (start, end) = info.data_offsets;
        Some(Source {
            path: &shard.path,
            name,
            dtype: info.dtype,
            shape: &info.shape,
            // In range: `read_metadata` holds every tensor against the file's length.
            bytes: &shard.map[shard.data + start..shard.data + end],
        })
    }

    /// The tensor of a name that has to be there, with this shape.
    pub(super) fn require(&self, name: &str, shape: &[usize]) -> Result<Source<'_>> {
        let source = self
            .get(name)
            .ok_or_else(|| Error::MissingTensor { path: self.dir.clone(), tensor: name.into() })?;
        source.check_shape(shape)?;
        Ok(source)
    }

    /// A tensor of one number, if it is there.
    pub(super) fn scalar(&self, name: &str) -> Result<Option<f32>> {
        let Some(source) = self.get(name) else { return Ok(None) };
        if source.shape.iter().product::<usize>() != 1 {
            return Err(source.wrong_shape(&[1]));
        }
        let mut value = [0.0];
        source.read_row(0, &mut value)?;
        Ok(Some(value[0]))
    }
}

fn index(path: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json(path)?;
    let wrong = |found: String| Error::Config {
        path: path.into(),
        field: "weight_map".into(),
        found,
        expected: "an object of file names".into(),
    };
    let map = json["weight_map"].as_object().ok_or_else(|| wrong(json["weight_map"].to_string()))?;
    let entry = |(tensor, shard): (&String, &Value)| {
        // A name with a folder in it could lead out of the model's own.
        let name = shard.as_str().filter(|s| Path::new(s).file_name().is_some_and(|f| f == *s));
        name.map(|name| (tensor.clone(), name.to_owned())).ok_or_else(|| wrong(shard.to_string()))
    };
    map.iter().map(entry).collect()
}

impl Source<'_> {
    pub(super) fn is_packed(&self) -> bool {
        self.dtype == SafeDtype::U8
    }

    pub(super) fn wrong_shape(&self, expected: &[usize]) -> Error {
        Error::TensorShape {
            path: self.path.into(),
            tensor: self.name.into(),
            expected: expected.into(),
            found: self.shape.into(),
        }
    }

    pub(super) fn check_shape(&self, expected: &[usize]) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }
        Err(self.wrong_shape(expected))
    }

    /// That these are numbers that [`Source::read_row`] reads.
    pub(super) fn check_floats(&self) -> Result<()> {
        match self.dtype {
            SafeDtype::F32 | SafeDtype::F16 | SafeDtype::BF16 => Ok(()),
            found => Err(Error::TensorType {
                path: self.path.into(),
                tensor: self.name.into(),
                expected: "F32, F16 or BF16",
                found: format!("{found:?}"),
            }),
        }
    }

    /// Values `row * out.len()` on, as f32. They have to be there and finite.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        self.check_floats()?;
        let n = out.len();
        match self.dtype {
            SafeDtype::F32 => {
                let bytes = &self.bytes[row * n * 4..(row + 1) * n * 4];
                for (x, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            half_width => {
                let bytes = &self.bytes[row * n * 2..(row + 1) * n * 2];
                let wide = match half_width {
                    SafeDtype::F16 => |bits| half::f16::from_bits(bits).to_f32(),
                    _ => |bits| half::bf16::from_bits(bits).to_f32(),
                };
                for (x, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = wide(u16::from_le_bytes([b[0], b[1]]));
                }
            }
        }
        match out.iter().find(|x| !x.is_finite()) {
            Some(&found) => Err(Error::NotFinite { path: self.path.into(), tensor: self.name.into(), found }),
            None => Ok(()),
        }
    }
}
