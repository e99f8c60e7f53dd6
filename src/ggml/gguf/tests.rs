//! Files built byte by byte: good ones come back as they were written, bad ones are errors that name their place.

use super::*;
use std::path::Path;

/// A file under construction; every part can be wrong on purpose.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(n_tensors: u64, n_kv: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_kv)
    }
    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn str(self, s: &str) -> Self {
        let mut out = self.u64(s.len() as u64);
        out.0.extend(s.as_bytes());
        out
    }
    fn kv_u32(self, key: &str, v: u32) -> Self {
        self.str(key).u32(4).u32(v)
    }
    fn tensor(self, name: &str, ne: &[u64], dtype: u32, offset: u64) -> Self {
        let mut out = self.str(name).u32(ne.len() as u32);
        for &n in ne {
            out = out.u64(n);
        }
        out.u32(dtype).u64(offset)
    }
    fn data(mut self, n: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }
    fn open(&self) -> Result<GgufFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.gguf");
        std::fs::write(&path, &self.0).unwrap();
        GgufFile::open(&path)
    }
}

#[test]
fn bad_files_are_errors_that_name_their_place() {
    let one = || Bytes::header(1, 0);
    let huge = u64::MAX / 2;
    let cases: Vec<(&str, Bytes, &str)> = vec![
        ("empty", Bytes(vec![]), "is not a GGUF file"),
        ("not a GGUF", Bytes(b"PK\x03\x04 and more".to_vec()), "starts with `PK\\x03\\x04`"),
        ("short magic", Bytes(b"GG".to_vec()), "starts with `GG`"),
        ("no version", Bytes(b"GGUF".to_vec()), "the version needs 4 bytes at offset 4"),
        ("version 1", Bytes(b"GGUF".to_vec()).u32(1), "GGUF version 1, expected 2 or 3"),
        ("big endian", Bytes(b"GGUF".to_vec()).u32(3u32.swap_bytes()), "GGUF version 50331648"),
        ("absurd keys", Bytes::header(0, huge), "the number of keys: 9223372036854775807 is more"),
        ("absurd tensors", Bytes::header(huge, 0), "the number of tensors: 9223372036854775807 is more"),
        ("key cut off", Bytes::header(0, 1).u64(500).u64(0), "key 0 needs 500 bytes at offset 32"),
        ("absurd string", Bytes::header(0, 1).str("k").u32(8).u64(huge), "key `k` needs"),
        (
            "unknown value type",
            Bytes::header(0, 1).str("k").u32(13).u64(0),
            "key `k` has the unknown value type 13",
        ),
        (
            "absurd array",
            Bytes::header(0, 1).str("k").u32(9).u32(12).u64(huge),
            "key `k`: 9223372036854775807 is more",
        ),
        (
            "absurd strings",
            Bytes::header(0, 1).str("k").u32(9).u32(8).u64(1 << 60).u64(0),
            "key `k`: 1152921504606846976 is more",
        ),
        (
            "array of arrays",
            Bytes::header(0, 1).str("k").u32(9).u32(9).u64(1).u32(4).u64(0),
            "key `k` has the unknown value type 9",
        ),
        ("key twice", Bytes::header(0, 2).kv_u32("k", 1).kv_u32("k", 2), "the key `k` stands there twice"),
        ("odd alignment", Bytes::header(0, 1).kv_u32("general.alignment", 48), "`general.alignment` is 48"),
        ("zero alignment", Bytes::header(0, 1).kv_u32("general.alignment", 0), "`general.alignment` is 0"),
        (
            "alignment of text",
            Bytes::header(0, 1).str("general.alignment").u32(8).str("x"),
            "key `general.alignment` is str \"x\", expected an integer",
        ),
        (
            "tensor twice",
            Bytes::header(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64),
            "the tensor `t` stands there twice",
        ),
        (
            "five dimensions",
            one().tensor("t", &[1; 5], 0, 0).data(4),
            "the shape 5 dimensions, expected at most 4",
        ),
        ("removed type", one().tensor("t", &[32], 4, 0).data(64), "tensor `t` has type 4"),
        ("unknown type", one().tensor("t", &[32], 999, 0).data(64), "tensor `t` has type 999"),
        ("half a block", one().tensor("t", &[100], 35, 0).data(64), "tensor `t` has the shape"),
        ("no values", one().tensor("t", &[0, 4], 0, 0).data(4), "tensor `t` has the shape"),
        ("overflow", one().tensor("t", &[1 << 40, 1 << 40], 0, 0).data(4), "tensor `t` has the shape"),
        ("byte overflow", one().tensor("t", &[1 << 62], 0, 0).data(4), "tensor `t`"),
        ("gap", one().tensor("t", &[8], 0, 64).data(256), "starts at offset 64 of the data, expected 0"),
        (
            "long name",
            one().tensor(&"n".repeat(64), &[8], 0, 0).data(32),
            "the length of the name of tensor `nnn",
        ),
        (
            "data cut off",
            one().tensor("blk.0.attn_q.weight", &[8, 8], 0, 0).data(255),
            "truncated: tensor `blk.0.attn_q.weight` needs 256 bytes",
        ),
    ];
    for (name, bytes, expected) in cases {
        let error = bytes.open().map(|_| ()).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: `{error}` lacks `{expected}`");
        assert!(error.contains("bad.gguf"), "{name}: `{error}` does not name the file");
    }
}

/// Whatever is cut off or flipped, opening ends in an answer, and every tensor of an accepted file can be read.
#[test]
fn damage_anywhere_never_panics() {
    let whole = Bytes::header(2, 3)
        .kv_u32("a", 7)
        .str("s")
        .u32(8)
        .str("text")
        .str("l")
        .u32(9)
        .u32(8)
        .u64(2)
        .str("x")
        .str("yz")
        .tensor("t", &[256, 2], 35, 0)
        .tensor("u", &[3], 0, 160)
        .data(172);
    let try_all = |bytes: &Bytes| {
        if parse::parse(Path::new("bad.gguf"), &bytes.0).is_ok() {
            let file = bytes.open().expect("what parses opens");
            for t in file.tensors() {
                let _ = file.read_f32(t);
            }
            return true;
        }
        false
    };
    assert!(try_all(&whole));
    for n in 0..whole.0.len() {
        assert!(!try_all(&Bytes(whole.0[..n].to_vec())), "cut at {n}");
    }
    for at in 0..whole.0.len() - 172 {
        for flip in [1u8, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes.0[at] ^= flip;
            try_all(&bytes);
        }
    }
}

fn sample(path: &Path) -> GgufWriter {
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama")
        .set("n", 1u32)
        .set("n", 2u32)
        .set("x", 1.5f32)
        .set("yes", true)
        .set("types", vec![1i32, -6])
        .set("tokens", vec!["a".to_string(), "Ġé".into()]);
    w.add_tensor("w", &[256, 2], Dtype::TQ2_0).unwrap();
    w.add_tensor("b", &[3], Dtype::F32).unwrap();
    assert!(!path.exists());
    w
}

#[test]
fn what_is_written_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut stream = sample(&path).create(&path).unwrap();
    assert_eq!(stream.next_tensor().unwrap().name, "w");
    let mut rows = Vec::new();
    Dtype::TQ2_0.quantize(&[0.5; 512], 256, &mut rows).unwrap();
    stream.write(&rows[..10]).unwrap();
    stream.write(&rows[10..]).unwrap();
    stream.write(&[1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat()).unwrap();
    assert!(!path.exists(), "it has no name before it is whole");
    stream.finish().unwrap();

    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.require_u64("n").unwrap(), 2);
    assert_eq!((file.get_f32("x").unwrap(), file.get_bool("yes").unwrap()), (Some(1.5), Some(true)));
    assert_eq!(file.get_strs("tokens").unwrap().unwrap(), ["a", "Ġé"]);
    assert_eq!(file.get("types"), Some(&Value::Array(Array::I32(vec![1, -6]))));
    assert_eq!(file.read_f32(file.require_tensor("b").unwrap()).unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(file.read_f32(file.require_shape("w", &[256, 2]).unwrap()).unwrap(), [0.5; 512]);
    assert!(file.tensors().iter().all(|t| t.offset % 32 == 0));

    assert!(matches!(file.get_u64("x"), Err(Error::KeyType { key, .. }) if key == "x"));
    assert!(matches!(file.require_str("nope"), Err(Error::MissingKey { key, .. }) if key == "nope"));
    assert!(matches!(file.require_tensor("nope"), Err(Error::MissingTensor { .. })));
    assert!(matches!(file.require_shape("w", &[2, 256]), Err(Error::TensorShape { .. })));

    let copy = dir.path().join("copy.gguf");
    let mut w = GgufWriter::new();
    w.copy_metadata(&file).set("n", 3u32);
    w.create(&copy).unwrap().finish().unwrap();
    let copy = GgufFile::open(&copy).unwrap();
    let keys = |f: &GgufFile| {
        f.metadata().filter(|(k, _)| *k != "n").map(|(k, v)| (k.to_owned(), v.clone())).collect::<Vec<_>>()
    };
    assert_eq!(keys(&file), keys(&copy));
    assert_eq!(copy.require_u64("n").unwrap(), 3);
}

#[test]
fn an_unfinished_file_leaves_nothing_and_keeps_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let w = sample(&path);
    std::fs::write(&path, "the old one").unwrap();

    let mut stream = w.create(&path).unwrap();
    stream.write(&[0; 132]).unwrap();
    assert!(matches!(stream.write(&[0; 13]), Err(Error::TensorBytes { found: 13, expected: 12, .. })));
    assert!(matches!(stream.finish(), Err(Error::TensorBytes { tensor, .. }) if tensor == "b"));

    assert_eq!(std::fs::read_to_string(&path).unwrap(), "the old one");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a partial file was left");
    let missing = dir.path().join("no/such/m.gguf");
    assert!(matches!(GgufWriter::new().create(&missing), Err(Error::Io { path, .. }) if path == missing));
}

/// `/dev/full` takes no byte: what a full disk looks like to the writer.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_with_a_hint() {
    use crate::error::Hint;
    let error = Error::Io {
        path: "x.gguf".into(),
        action: "write the file",
        source: std::fs::write("/dev/full", [0; 10]).unwrap_err(),
    };
    assert!(error.hint().unwrap().contains("free some space"));
}
