//! GGUF files: reading their metadata and tensors through a memory map, and writing new ones as a stream.
//!
//! The reader is ours and not upstream's `gguf_init_from_file`: that one reports a bad file as a null pointer and a log
//! line, so neither key, tensor nor offset reach the user, and its getters abort on a wrong type. The format is a page
//! long; every size is held against the file before it is used. Files are little-endian, versions 2 and 3.
//! What this does not do: interpret keys (`model::hparams`) or split files.

mod parse;
#[cfg(test)]
mod tests;
mod value;
mod write;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::dtype::Dtype;
use super::error::{Error, Result};
use super::map::FileMap;

pub use value::{Array, Value};
pub use write::{GgufStream, GgufWriter};

/// Where tensor data starts on when a file says nothing (GGUF_DEFAULT_ALIGNMENT).
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Dimensions of a tensor (GGML_MAX_DIMS).
pub const MAX_DIMS: usize = 4;
/// Bytes of a tensor's name with its NUL (GGML_MAX_NAME).
pub const MAX_NAME: usize = 64;

/// One entry of the tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Dimensions the file states; `ne` holds 1 beyond them.
    pub n_dims: usize,
    /// Values per dimension, the row first.
    pub ne: [i64; MAX_DIMS],
    pub dtype: Dtype,
    /// Where the data starts in the file, in bytes.
    pub offset: u64,
    /// Bytes of data.
    pub size: u64,
}

impl TensorInfo {
    /// Number of values.
    pub fn n_elements(&self) -> usize {
        self.ne.iter().product::<i64>() as usize
    }

    /// Values of a row.
    pub fn n_per_row(&self) -> usize {
        self.ne[0] as usize
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.ne[1..].iter().product::<i64>() as usize
    }

    /// The dimensions as messages show them: `[2048, 5632]`.
    pub fn shape(&self) -> String {
        format!("{:?}", &self.ne[..self.n_dims.max(1)])
    }
}

/// A key with its value, and where both stand in the file.
#[derive(Debug, Clone)]
struct Kv {
    key: String,
    value: Value,
    raw: Range<usize>,
}

/// What stands before the tensors' data.
#[derive(Debug)]
struct Contents {
    version: u32,
    alignment: u64,
    data_offset: u64,
    kv: Vec<Kv>,
    kv_index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
}

/// An open GGUF file. Its tensors' data is a memory map: nothing is read before it is looked at.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: FileMap,
    contents: Contents,
}

impl GgufFile {
    /// Opens a file and checks its whole structure, tensor extents included, against its length.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = FileMap::open(path)?;
        if map.is_empty() {
            return Err(Error::GgufMagic { path: path.into(), found: String::new() });
        }
        let contents = parse::parse(path, &map)?;
        Ok(Self { path: path.into(), map, contents })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole file.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Never: an empty file does not open.
    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn version(&self) -> u32 {
        self.contents.version
    }

    /// What tensors' offsets are multiples of.
    pub fn alignment(&self) -> u64 {
        self.contents.alignment
    }

    /// Where the tensors' data starts in the file.
    pub fn data_offset(&self) -> u64 {
        self.contents.data_offset
    }

    /// All keys and values, in the file's order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.contents.kv.iter().map(|kv| (kv.key.as_str(), &kv.value))
    }

    /// The value of a key, if it is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.contents.kv_index.get(key).map(|&i| &self.contents.kv[i].value)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| Error::KeyType {
            path: self.path.clone(),
            key: key.into(),
            expected,
            found: value.describe(),
        })
    }

    /// A whole number; `None` if the key is missing, an error if it is something else.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number", Value::as_u64)
    }

    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", Value::as_f32)
    }

    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", Value::as_bool)
    }

    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn get_strs(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of strings", |v| v.as_array().and_then(Array::as_strs))
    }

    /// The error of a key that had to be there.
    pub fn missing_key(&self, key: &str) -> Error {
        Error::MissingKey { path: self.path.clone(), key: key.into() }
    }

    pub fn require_u64(&self, key: &str) -> Result<u64> {
        self.get_u64(key)?.ok_or_else(|| self.missing_key(key))
    }

    pub fn require_f32(&self, key: &str) -> Result<f32> {
        self.get_f32(key)?.ok_or_else(|| self.missing_key(key))
    }

    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.get_str(key)?.ok_or_else(|| self.missing_key(key))
    }

    /// All bytes: what stands before the tensors' data, and the data.
    pub fn halves(&self) -> (&[u8], &[u8]) {
        self.map.split_at((self.contents.data_offset as usize).min(self.map.len()))
    }

    /// The tensor table, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.contents.tensors
    }

    /// The tensor of a name, if it is there.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.contents.tensor_index.get(name).map(|&i| &self.contents.tensors[i])
    }

    /// The tensor of a name that has to be there.
    pub fn require_tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name).ok_or_else(|| Error::MissingTensor { path: self.path.clone(), tensor: name.into() })
    }

    /// The tensor of a name that has to be there with this shape (1 beyond the dimensions given).
    pub fn require_shape(&self, name: &str, ne: &[i64]) -> Result<&TensorInfo> {
        let info = self.require_tensor(name)?;
        let fits = (0..MAX_DIMS).all(|d| info.ne[d] == ne.get(d).copied().unwrap_or(1));
        if !fits {
            return Err(Error::TensorShape {
                path: self.path.clone(),
                tensor: name.into(),
                expected: format!("{ne:?}"),
                found: info.shape(),
            });
        }
        Ok(info)
    }

    /// The bytes of the tensor of a name.
    pub fn data(&self, name: &str) -> Result<&[u8]> {
        Ok(self.bytes(self.require_tensor(name)?))
    }

    /// The bytes of a tensor of this file.
    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        // In range: `open` holds every entry against the length, and entries come from nowhere else.
        &self.map[info.offset as usize..(info.offset + info.size) as usize]
    }

    /// Rows `rows` of a tensor as f32, in `out` (cleared first).
    pub fn read_rows(&self, info: &TensorInfo, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let row_size = info.size as usize / info.n_rows();
        let rows = rows.start.min(info.n_rows())..rows.end.min(info.n_rows());
        out.clear();
        out.resize(rows.len() * info.n_per_row(), 0.0);
        info.dtype.dequantize(&self.bytes(info)[rows.start * row_size..rows.end * row_size], out)
    }

    /// A whole tensor as f32.
    pub fn read_f32(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        self.read_rows(info, 0..info.n_rows(), &mut out)?;
        Ok(out)
    }

    /// A key with its value as the bytes of the file, for a copy that changes nothing.
    fn raw_metadata(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.contents.kv.iter().map(|kv| (kv.key.as_str(), &self.map[kv.raw.clone()]))
    }
}
