//! `tokenizer.model`: SentencePiece's protobuf, as far as a vocabulary needs it.
//!
//! The messages are `ModelProto`, `SentencePiece`, `TrainerSpec` and `NormalizerSpec` of sentencepiece_model.proto. Only
//! its BPE models are taken: libllama's `llama` vocabulary joins pairs by score, which is that algorithm.

use std::fs;

use super::super::error::{Error, Result};
use super::{token_type, Files, Tokenizer};

const FILE: &str = "tokenizer.model";
/// `TrainerSpec.ModelType`
const BPE: u64 = 2;

/// A field's value, as far as its wire type tells.
enum Field<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    Fixed64,
}

/// Fields of a message, each with its number. `None` where the bytes are no message.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let field = match tag & 7 {
            0 => Field::Varint(varint(&mut bytes)?),
            1 => {
                bytes = bytes.get(8..)?;
                Field::Fixed64
            }
            2 => {
                let n = usize::try_from(varint(&mut bytes)?).ok()?;
                let value = bytes.get(..n)?;
                bytes = &bytes[n..];
                Field::Bytes(value)
            }
            5 => {
                let value = bytes.first_chunk::<4>()?;
                bytes = &bytes[4..];
                Field::Fixed32(*value)
            }
            _ => return None,
        };
        found.push((tag >> 3, field));
    }
    Some(found)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What is read of a model.
#[derive(Debug, Default, PartialEq)]
struct Model {
    /// Text, score, type.
    pieces: Vec<(String, f32, i32)>,
    is_bpe: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

fn model(bytes: &[u8]) -> Option<Model> {
    // The defaults of sentencepiece_model.proto.
    let mut model = Model { add_dummy_prefix: true, remove_extra_whitespaces: true, ..Model::default() };
    for (number, field) in fields(bytes)? {
        let Field::Bytes(message) = field else { continue };
        match number {
            1 => model.pieces.push(piece(message)?),
            2 => {
                for (number, field) in fields(message)? {
                    if let (3, Field::Varint(kind)) = (number, field) {
                        model.is_bpe = kind == BPE;
                    }
                }
            }
            3 => {
                for (number, field) in fields(message)? {
                    match (number, field) {
                        (3, Field::Varint(on)) => model.add_dummy_prefix = on != 0,
                        (4, Field::Varint(on)) => model.remove_extra_whitespaces = on != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(model)
}

fn piece(bytes: &[u8]) -> Option<(String, f32, i32)> {
    let (mut text, mut score, mut kind) = (String::new(), 0.0, token_type::NORMAL);
    for (number, field) in fields(bytes)? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => text = String::from_utf8_lossy(bytes).into_owned(),
            (2, Field::Fixed32(bytes)) => score = f32::from_le_bytes(bytes),
            (3, Field::Varint(id)) => kind = i32::try_from(id).ok().filter(|id| (1..=6).contains(id))?,
            _ => {}
        }
    }
    Some((text, score, kind))
}

pub(super) fn read(files: &Files<'_>) -> Result<Tokenizer> {
    let path = files.dir.join(FILE);
    let bytes = fs::read(&path).map_err(|source| Error::Io {
        path: path.clone(),
        action: "read the file",
        source,
    })?;
    let model = model(&bytes).filter(|m| !m.pieces.is_empty());
    let model = model.ok_or_else(|| files.wrong(FILE, "it is no SentencePiece model, or not whole"))?;
    if !model.is_bpe {
        return Err(Error::Unsupported { path, what: "a SentencePiece model that is not BPE".into() });
    }
    let mut tokenizer = Tokenizer { model: "llama", pre: "default".into(), ..Tokenizer::default() };
    for (text, score, kind) in model.pieces {
        tokenizer.tokens.push(text);
        tokenizer.scores.push(score);
        tokenizer.types.push(kind);
    }
    let prefix = files.config["add_prefix_space"].as_bool().unwrap_or(model.add_dummy_prefix);
    tokenizer.flags.push(("add_space_prefix", prefix));
    if model.remove_extra_whitespaces {
        tokenizer.flags.push(("remove_extra_whitespaces", true));
    }
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ModelProto` with two pieces, a BPE trainer and a normalizer without the prefix.
    const PROTO: &[u8] = &[
        0x0a, 9, 0x0a, 2, b'a', b'b', 0x15, 0, 0, 0x80, 0xbf, // "ab", -1.0
        0x0a, 5, 0x0a, 1, b'?', 0x18, 2, // "?", unknown
        0x12, 2, 0x18, 2, // BPE
        0x1a, 2, 0x18, 0, // no dummy prefix
    ];

    #[test]
    fn a_model_is_read() {
        let m = model(PROTO).unwrap();
        assert_eq!(m.pieces, [("ab".to_owned(), -1.0, 1), ("?".to_owned(), 0.0, 2)]);
        assert!(m.is_bpe && !m.add_dummy_prefix && m.remove_extra_whitespaces);
    }

    #[test]
    fn a_cut_model_is_none() {
        for n in [1, 3, 10, 14, PROTO.len() - 1] {
            assert_eq!(model(&PROTO[..n]), None, "{n}");
        }
        assert_eq!(varint(&mut &[0xff; 11][..]), None);
    }
}
