//! GGUF files out: the table first, then the tensors one by one, so that no model has to fit in memory.
//!
//! A file appears under its name only when it is whole: it is written beside its place, synced and renamed. A write that
//! fails or is dropped leaves nothing behind.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::value::{Array, Value};
use super::{GgufFile, TensorInfo, DEFAULT_ALIGNMENT, MAX_DIMS};
use crate::ggml::dtype::Dtype;
use crate::ggml::error::{Error, Result};

/// What the file will hold: set keys, add tensors, then [`GgufWriter::create`].
#[derive(Debug, Default)]
pub struct GgufWriter {
    kv: Vec<(String, Vec<u8>)>,
    tensors: Vec<TensorInfo>,
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|x| u8::from(*x))),
        Array::Str(v) => v.iter().for_each(|s| put_str(out, s)),
        Array::U64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
    }
}

fn encode(key: &str, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_str(&mut out, key);
    out.extend(value.type_id().to_le_bytes());
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => put_str(&mut out, v),
        Value::Array(v) => put_array(&mut out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
    out
}

impl GgufWriter {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key, in the place of an earlier value if there is one. The alignment stays upstream's default.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.put(key, encode(key, &value.into()));
        self
    }

    /// Takes a key out again.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.kv.retain(|(k, _)| k != key);
        self
    }

    fn put(&mut self, key: &str, raw: Vec<u8>) {
        match self.kv.iter_mut().find(|(k, _)| k == key) {
            Some(slot) => slot.1 = raw,
            None => self.kv.push((key.into(), raw)),
        }
    }

    /// Takes over all metadata of a file, byte for byte (but its alignment, which is the writer's own).
    pub fn copy_metadata(&mut self, from: &GgufFile) -> &mut Self {
        for (key, raw) in from.raw_metadata().filter(|(key, _)| *key != "general.alignment") {
            self.put(key, raw.to_vec());
        }
        self
    }

    /// Adds a tensor to the table; data comes later in this order.
    pub fn add_tensor(&mut self, name: &str, ne: &[i64], dtype: Dtype) -> Result<&mut Self> {
        let row = ne.first().map_or(1, |&n| n as usize);
        let row_size = dtype.row_size(row).ok_or(Error::RowSize {
            type_name: dtype.name(),
            block: dtype.block_size(),
            found: row,
        })?;
        let mut full = [1; MAX_DIMS];
        full[..ne.len()].copy_from_slice(ne);
        let size = row_size as u64 * full[1..].iter().map(|&n| n as u64).product::<u64>();
        let offset =
            self.tensors.last().map_or(0, |t| (t.offset + t.size).next_multiple_of(DEFAULT_ALIGNMENT));
        self.tensors.push(TensorInfo { name: name.into(), n_dims: ne.len(), ne: full, dtype, offset, size });
        Ok(self)
    }

    /// The tensors added so far; offsets are relative to the data.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Bytes of tensor data the file will hold.
    pub fn data_size(&self) -> u64 {
        self.tensors.iter().map(|t| t.size).sum()
    }

    /// Starts the file: writes all but the tensors' data, beside `path`.
    pub fn create(self, path: impl AsRef<Path>) -> Result<GgufStream> {
        let path = path.as_ref().to_owned();
        let io = |action| {
            let path = path.clone();
            move |source| Error::Io { path, action, source }
        };
        let temp = beside(&path).map_err(io("create the file"))?;
        let mut head = Vec::new();
        head.extend(b"GGUF");
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.kv.len() as u64).to_le_bytes());
        for (_, raw) in &self.kv {
            head.extend(raw);
        }
        for t in &self.tensors {
            put_str(&mut head, &t.name);
            head.extend((t.n_dims as u32).to_le_bytes());
            head.extend(t.ne[..t.n_dims].iter().flat_map(|&n| (n as u64).to_le_bytes()));
            head.extend((t.dtype as u32).to_le_bytes());
            head.extend(t.offset.to_le_bytes());
        }
        head.resize(head.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        let mut out = BufWriter::with_capacity(1 << 20, temp);
        out.write_all(&head).map_err(io("write the file"))?;
        let bytes = head.len() as u64;
        Ok(GgufStream { path, out, tensors: self.tensors, next: 0, written: 0, bytes })
    }
}

/// A new file in the folder of `path`, readable as the user's umask says, gone when dropped.
fn beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let prefix = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

/// A file being written. Dropped before [`GgufStream::finish`], it leaves nothing.
#[derive(Debug)]
pub struct GgufStream {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    tensors: Vec<TensorInfo>,
    next: usize,
    written: u64,
    /// Of the whole file so far.
    bytes: u64,
}

impl GgufStream {
    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = self.path.clone();
        move |source| Error::Io { path, action, source }
    }

    /// The tensor whose data comes next.
    pub fn next_tensor(&self) -> Option<&TensorInfo> {
        self.tensors.get(self.next)
    }

    /// Some of the current tensor's data; goes on to the next tensor when it is complete.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(t) = self.tensors.get(self.next) else {
            return Err(Error::TensorBytes {
                tensor: "(none left)".into(),
                expected: 0,
                found: bytes.len() as u64,
            });
        };
        let found = self.written + bytes.len() as u64;
        if found > t.size {
            return Err(Error::TensorBytes { tensor: t.name.clone(), expected: t.size, found });
        }
        let complete = found == t.size;
        let padding = (t.size.next_multiple_of(DEFAULT_ALIGNMENT) - t.size) as usize;
        self.out.write_all(bytes).map_err(self.io("write the file"))?;
        self.written = found;
        self.bytes += bytes.len() as u64;
        if complete {
            self.bytes += padding as u64;
            self.out
                .write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding])
                .map_err(self.io("write the file"))?;
            self.next += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Ends the file as if zeros had been written for all that is left; where the file system can leave holes, they take no
    /// room. For what looks at the table only.
    pub fn finish_empty(mut self) -> Result<u64> {
        let left = self.tensors[self.next.min(self.tensors.len())..].iter();
        let left: u64 = left.map(|t| t.size.next_multiple_of(DEFAULT_ALIGNMENT)).sum();
        self.bytes += left - self.written;
        self.out.flush().map_err(self.io("write the file"))?;
        self.out.get_ref().as_file().set_len(self.bytes).map_err(self.io("write the file"))?;
        self.next = self.tensors.len();
        self.finish()
    }

    /// Syncs the file and gives it its name; the file's bytes. All tensors must have been written.
    pub fn finish(mut self) -> Result<u64> {
        if let Some(t) = self.tensors.get(self.next) {
            return Err(Error::TensorBytes { tensor: t.name.clone(), expected: t.size, found: self.written });
        }
        self.out.flush().map_err(self.io("write the file"))?;
        let failed = self.io("write the file");
        let rename = self.io("put the file in its place");
        let temp = self.out.into_inner().map_err(|e| e.into_error());
        let temp = match temp.and_then(|t| t.as_file().sync_all().map(|()| t)) {
            Ok(temp) => temp,
            Err(e) => return Err(failed(e)),
        };
        temp.persist(&self.path).map_err(|e| rename(e.error))?;
        sync_folder(&self.path);
        Ok(self.bytes)
    }
}

/// Makes the rename itself durable, where the system can; the data is safe either way.
fn sync_folder(path: &Path) {
    if let Some(Ok(dir)) = path.parent().map(File::open) {
        let _ = dir.sync_all();
    }
}
