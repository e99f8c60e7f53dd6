//! Event files that TensorBoard shows: TFRecords of `Event` messages, written here since two message types with a handful
//! of fields need no protobuf library.
//!
//! A record is its length (u64), that length's checksum, the message, the message's checksum; checksums are CRC-32C,
//! rotated and shifted ("masked") since records hold checksums themselves. Numbers are little-endian. Fields by number
//! (tensorflow/core/util/event.proto, framework/summary.proto): Event wall_time 1, step 2, file_version 3, summary 5,
//! session_log 7; Summary value 1; Value tag 1, simple_value 2; SessionLog status 1.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::{Error, Result};

/// SessionLog's status that makes TensorBoard forget events of this step and later: a run was gone on with.
const START: u64 = 1;

/// An open event file.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Makes a file of its own in `dir`, for a run of which `step` steps are done already: what older files there tell of
    /// later steps is no longer shown.
    pub fn create(dir: &Path, step: u64) -> Result<Self> {
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Io { action, path, source }
        };
        fs::create_dir_all(dir).map_err(io("create", dir))?;
        let seconds = now() as u64;
        // TensorBoard reads files whose names hold `tfevents`, in the order of their names.
        let (path, file) = (0u32..)
            .find_map(|n| {
                let name = format!("events.out.tfevents.{seconds:010}.qvac-ft.{}.{n}", std::process::id());
                let path = dir.join(name);
                match OpenOptions::new().append(true).create_new(true).open(&path) {
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => None,
                    opened => Some(opened.map(|file| (path.clone(), file)).map_err(io("create", &path))),
                }
            })
            .expect("some number is free")?;
        let mut events = Self { path, file };
        events.append(&message(0, |m| field_bytes(m, 3, b"brain.Event:2")))?;
        if step > 0 {
            let mut log = Vec::new();
            field_varint(&mut log, 1, START);
            events.append(&message(step + 1, |m| field_bytes(m, 7, &log)))?;
        }
        Ok(events)
    }

    /// Writes figures of `step`.
    pub fn write(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut entry = Vec::new();
            field_bytes(&mut entry, 1, tag.as_bytes());
            entry.push((2 << 3) | 5);
            entry.extend((*value as f32).to_le_bytes());
            field_bytes(&mut summary, 1, &entry);
        }
        self.append(&message(step, |m| field_bytes(m, 5, &summary)))
    }

    /// In one write, so that a reader sees no half of a record.
    fn append(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(crc32c::crc32c(&length)).to_le_bytes());
        record.extend(message);
        record.extend(masked(crc32c::crc32c(message)).to_le_bytes());
        let io = |source| Error::Io { action: "write", path: self.path.clone(), source };
        self.file.write_all(&record).map_err(io)
    }
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn message(step: u64, what: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![(1 << 3) | 1];
    out.extend(now().to_le_bytes());
    field_varint(&mut out, 2, step);
    what(&mut out);
    out
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn field_varint(out: &mut Vec<u8>, field: u64, n: u64) {
    varint(out, field << 3);
    varint(out, n);
}

fn field_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, (field << 3) | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another way to the same checksum: bit by bit.
    fn crc_by_bits(bytes: &[u8]) -> u32 {
        let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, b| (0..8).fold(crc ^ u32::from(*b), |crc, _| step(crc)))
    }

    /// The messages of a file, their lengths and checksums checked.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        let sum = |bytes: &[u8]| {
            let crc = crc_by_bits(bytes);
            crc.rotate_right(15).wrapping_add(0xa282_ead8)
        };
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), sum(&rest[..8]));
            assert_eq!(crc(12 + length), sum(&rest[12..12 + length]));
            found.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        found
    }

    /// The fields of a message: number, and the varint or the bytes.
    fn fields(mut rest: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
        fn varint(rest: &mut &[u8]) -> u64 {
            let mut n = 0;
            for shift in (0..).step_by(7) {
                let byte = rest[0];
                *rest = &rest[1..];
                n |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            n
        }
        let mut found = Vec::new();
        while !rest.is_empty() {
            let key = varint(&mut rest);
            let (n, length) = match key & 7 {
                0 => (varint(&mut rest), 0),
                1 => (0, 8),
                5 => (0, 4),
                2 => (0, varint(&mut rest) as usize),
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, n, rest[..length].to_vec()));
            rest = &rest[length..];
        }
        found
    }

    fn only(dir: &Path) -> PathBuf {
        let files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        files[0].clone()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path(), 0).unwrap();
        events.write(1, &[("train/loss", 2.5), ("train/lr", 1e-4)]).unwrap();
        events.write(300, &[("eval/loss", 1.25)]).unwrap();
        let records = records(&only(dir.path()));
        assert_eq!(records.len(), 3);
        let version = fields(&records[0]);
        assert_eq!(version.last().unwrap(), &(3, 0, b"brain.Event:2".to_vec()));
        let wall = f64::from_le_bytes(version[0].2.clone().try_into().unwrap());
        assert!((now() - wall).abs() < 60.0);
        for (record, step, expected) in [
            (&records[1], 1, vec![("train/loss", 2.5f32), ("train/lr", 1e-4)]),
            (&records[2], 300, vec![("eval/loss", 1.25)]),
        ] {
            let event = fields(record);
            assert_eq!((event[1].0, event[1].1, event[2].0), (2, step, 5));
            let found: Vec<(String, f32)> = fields(&event[2].2)
                .into_iter()
                .map(|(_, _, value)| {
                    let value = fields(&value);
                    let number = f32::from_le_bytes(value[1].2.clone().try_into().unwrap());
                    (String::from_utf8(value[0].2.clone()).unwrap(), number)
                })
                .collect();
            let expected: Vec<(String, f32)> = expected.into_iter().map(|(t, v)| (t.into(), v)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_run_that_goes_on_takes_back_what_is_told_of_later_steps() {
        let dir = tempfile::tempdir().unwrap();
        Events::create(dir.path(), 40).unwrap();
        let records = records(&only(dir.path()));
        let log = fields(&records[1]);
        assert_eq!((log[1].1, log[2].0, fields(&log[2].2)), (41, 7, vec![(1, START, Vec::new())]));
        // Two in one second have files of their own.
        Events::create(dir.path(), 40).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
