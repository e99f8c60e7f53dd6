//! The header, metadata and tensor table of a GGUF file, from bytes that nobody vouches for.

use std::collections::HashMap;
use std::path::Path;

use super::value::{Array, Value, ARRAY, STRING};
use super::{Contents, Kv, TensorInfo, DEFAULT_ALIGNMENT, MAX_DIMS, MAX_NAME};
use crate::ggml::dtype::Dtype;
use crate::ggml::error::{Error, Result};

/// Fewest bytes a key-value pair can take: key length, one byte of key, type, one byte of value.
const MIN_KV_BYTES: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes a tensor's entry can take: name length, one byte of name, dimension count, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// A place in the file that never moves past its end.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64, what: &dyn Fn() -> String) -> Result<&'a [u8]> {
        if n > self.remaining() {
            return Err(Error::GgufTruncated {
                path: self.path.into(),
                what: what(),
                offset: self.at as u64,
                need: n,
                len: self.bytes.len() as u64,
            });
        }
        let taken = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A string. The format asks for UTF-8; what is not is replaced, since vocabularies in the wild hold stray bytes and
    /// a copy of the file takes the raw ones anyway.
    fn string(&mut self, what: &dyn Fn() -> String) -> Result<String> {
        let n = self.u64(what)?;
        Ok(String::from_utf8_lossy(self.take(n, what)?).into_owned())
    }

    /// How many of something the file says it has, held against how many could fit in what is left.
    fn count(&mut self, what: &'static str, min_bytes: u64) -> Result<u64> {
        let found = self.u64(&|| what.to_owned())?;
        self.check_count(found, min_bytes, || what.to_owned())?;
        Ok(found)
    }

    fn check_count(&self, found: u64, min_bytes: u64, what: impl Fn() -> String) -> Result<()> {
        let most = self.remaining() / min_bytes;
        if found > most {
            return Err(Error::GgufCount { path: self.path.into(), what: what(), found, most });
        }
        Ok(())
    }

    fn value(&mut self, what: &dyn Fn() -> String) -> Result<Value> {
        let type_id = self.u32(what)?;
        Ok(match type_id {
            0 => Value::U8(self.array::<1>(what)?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(self.u32(what)?),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => Value::Bool(self.array::<1>(what)?[0] != 0),
            STRING => Value::Str(self.string(what)?),
            ARRAY => Value::Array(self.value_array(what)?),
            10 => Value::U64(self.u64(what)?),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            found => return Err(Error::GgufValueType { path: self.path.into(), what: what(), found }),
        })
    }

    fn value_array(&mut self, what: &dyn Fn() -> String) -> Result<Array> {
        let type_id = self.u32(what)?;
        let n = self.u64(what)?;
        macro_rules! plain {
            ($variant:ident, $t:ty) => {{
                const SIZE: usize = std::mem::size_of::<$t>();
                self.check_count(n, SIZE as u64, what)?;
                let bytes = self.take(n * SIZE as u64, what)?;
                let item = |chunk: &[u8]| {
                    let mut item = [0; SIZE];
                    item.copy_from_slice(chunk);
                    <$t>::from_le_bytes(item)
                };
                Array::$variant(bytes.chunks_exact(SIZE).map(item).collect())
            }};
        }
        Ok(match type_id {
            0 => plain!(U8, u8),
            1 => plain!(I8, i8),
            2 => plain!(U16, u16),
            3 => plain!(I16, i16),
            4 => plain!(U32, u32),
            5 => plain!(I32, i32),
            6 => plain!(F32, f32),
            7 => Array::Bool(self.take(n, what)?.iter().map(|b| *b != 0).collect()),
            STRING => {
                self.check_count(n, 8, what)?;
                Array::Str((0..n).map(|_| self.string(what)).collect::<Result<_>>()?)
            }
            10 => plain!(U64, u64),
            11 => plain!(I64, i64),
            12 => plain!(F64, f64),
            found => return Err(Error::GgufValueType { path: self.path.into(), what: what(), found }),
        })
    }
}

/// Reads everything but the tensors' data.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Contents> {
    let mut cur = Cursor { path, bytes, at: 0 };
    let magic = &bytes[..bytes.len().min(4)];
    if magic != b"GGUF" {
        return Err(Error::GgufMagic { path: path.into(), found: magic.escape_ascii().to_string() });
    }
    cur.at = 4;
    let version = cur.u32(&|| "the version".into())?;
    if !(2..=3).contains(&version) {
        return Err(Error::GgufVersion { path: path.into(), found: version });
    }
    let n_tensors = cur.count("the number of tensors", MIN_TENSOR_BYTES)?;
    let n_kv = cur.count("the number of keys", MIN_KV_BYTES)?;

    let mut kv: Vec<Kv> = Vec::new();
    let mut kv_index = HashMap::new();
    for i in 0..n_kv {
        let start = cur.at;
        let key = cur.string(&|| format!("key {i}"))?;
        let value = cur.value(&|| format!("key `{key}`"))?;
        if kv_index.insert(key.clone(), kv.len()).is_some() {
            return Err(Error::GgufDuplicate { path: path.into(), what: "key", name: key });
        }
        kv.push(Kv { key, value, raw: start..cur.at });
    }

    let alignment = match kv_index.get("general.alignment").map(|&i| &kv[i].value) {
        None => DEFAULT_ALIGNMENT,
        Some(value) => {
            let found = value.as_u64().ok_or_else(|| Error::KeyType {
                path: path.into(),
                key: "general.alignment".into(),
                expected: "an integer",
                found: value.describe(),
            })?;
            if !found.is_power_of_two() || found > u32::MAX.into() {
                return Err(Error::GgufAlignment { path: path.into(), found });
            }
            found
        }
    };

    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut tensor_index = HashMap::new();
    for i in 0..n_tensors {
        let info = tensor_info(&mut cur, i)?;
        if tensor_index.insert(info.name.clone(), tensors.len()).is_some() {
            return Err(Error::GgufDuplicate { path: path.into(), what: "tensor", name: info.name });
        }
        tensors.push(info);
    }

    let data_offset = (cur.at as u64).next_multiple_of(alignment);
    place_tensors(path, bytes.len() as u64, alignment, data_offset, &mut tensors)?;
    Ok(Contents { version, alignment, data_offset, kv, kv_index, tensors, tensor_index })
}

/// One entry of the tensor table; `offset` is still relative to the data.
fn tensor_info(cur: &mut Cursor<'_>, i: u64) -> Result<TensorInfo> {
    let path = cur.path;
    let name = cur.string(&|| format!("the name of tensor {i}"))?;
    let what = || format!("the entry of tensor `{name}`");
    let shape_error = |expected: String, found: String| Error::TensorShape {
        path: path.into(),
        tensor: name.clone(),
        expected,
        found,
    };
    if name.len() >= MAX_NAME {
        return Err(Error::GgufCount {
            path: path.into(),
            what: format!("the length of the name of tensor `{name}`"),
            found: name.len() as u64,
            most: MAX_NAME as u64 - 1,
        });
    }
    let n_dims = cur.u32(&what)?;
    if n_dims as usize > MAX_DIMS {
        return Err(shape_error(format!("at most {MAX_DIMS} dimensions"), format!("{n_dims} dimensions")));
    }
    let mut ne = [1u64; MAX_DIMS];
    for n in &mut ne[..n_dims as usize] {
        *n = cur.u64(&what)?;
    }
    let type_id = cur.u32(&what)?;
    let dtype = Dtype::from_u32(type_id).ok_or_else(|| Error::TensorType {
        path: path.into(),
        tensor: name.clone(),
        found: type_id,
    })?;
    let offset = cur.u64(&what)?;

    let n_elements = ne.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= i64::MAX as u64);
    if ne.contains(&0) || n_elements.is_none() {
        return Err(shape_error("dimensions above 0 whose product fits".into(), format!("{ne:?}")));
    }
    let size = usize::try_from(ne[0])
        .ok()
        .and_then(|n| dtype.row_size(n))
        .ok_or_else(|| {
            shape_error(format!("rows of a multiple of {} ({dtype})", dtype.block_size()), format!("{ne:?}"))
        })
        .map(|row| (row as u64).checked_mul(ne[1] * ne[2] * ne[3]))?
        .ok_or_else(|| shape_error("a size in bytes that fits".into(), format!("{ne:?}")))?;
    Ok(TensorInfo { name, n_dims: n_dims as usize, ne: ne.map(|n| n as i64), dtype, offset, size })
}

/// Makes the offsets absolute and holds every tensor's data against the file. Upstream takes tensors only in the order
/// and places that the alignment gives; a file it would refuse is refused here too.
fn place_tensors(path: &Path, len: u64, alignment: u64, data: u64, tensors: &mut [TensorInfo]) -> Result<()> {
    let mut expected = 0u64;
    for t in tensors {
        if t.offset != expected {
            return Err(Error::TensorOffset {
                path: path.into(),
                tensor: t.name.clone(),
                expected,
                found: t.offset,
            });
        }
        t.offset = data + expected;
        let end = t.offset.checked_add(t.size).filter(|end| *end <= len);
        if end.is_none() {
            return Err(Error::GgufTruncated {
                path: path.into(),
                what: format!("tensor `{}`", t.name),
                offset: t.offset,
                need: t.size,
                len,
            });
        }
        expected += t.size.next_multiple_of(alignment);
    }
    Ok(())
}
