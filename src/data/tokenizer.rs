//! What this room needs of a vocabulary, and where each token of a text lies in it.

use std::ops::Range;

use super::error::{Error, Origin, Result};

/// A vocabulary, as far as training data is concerned. [`crate::llama`]'s vocabulary is one.
pub trait Tokenizer {
    /// Token ids of `text`. `parse_special`: the text of a special token (`<|im_end|>`) becomes that token.
    /// `add_special`: BOS and EOS are added where the vocabulary asks for them.
    fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>>;
    /// The bytes a token stands for; a special token's are its text. Need not be UTF-8 by itself.
    fn piece(&self, token: i32) -> Result<Vec<u8>>;
    /// Beginning of sequence.
    fn bos(&self) -> Option<i32>;
    /// End of sequence.
    fn eos(&self) -> Option<i32>;
    /// End of turn, where it is not `eos`.
    fn eot(&self) -> Option<i32>;
    /// Whether every sequence begins with BOS.
    fn add_bos(&self) -> bool;
    /// Whether generation stops at this token.
    fn is_eog(&self, token: i32) -> bool;
    /// Whether the token is structure and not text (`<|im_start|>`, BOS).
    fn is_special(&self, token: i32) -> bool;

    /// A special token's text, or nothing where the vocabulary has none.
    fn text_of(&self, token: Option<i32>) -> Result<String> {
        match token {
            Some(t) => Ok(String::from_utf8_lossy(&self.piece(t)?).into_owned()),
            None => Ok(String::new()),
        }
    }
}

/// A text's tokens and the bytes that each covers.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) tokens: Vec<i32>,
    /// Ascending, without overlap. A token that stands for nothing in the text (an added BOS, the space that a
    /// SentencePiece vocabulary puts before the first word) has an empty range.
    pub(super) bytes: Vec<Range<usize>>,
}

/// Tokenises a rendered conversation in one piece, as inference does: special tokens are parsed, also those that a
/// message's own text spells. BOS is added where the vocabulary asks for it and the template has not written it.
pub(super) fn encode_text(tokenizer: &dyn Tokenizer, text: &str, origin: &Origin) -> Result<Encoded> {
    let mut tokens = tokenizer.encode(text, false, true)?;
    let mut bytes = locate(tokenizer, &tokens, text, origin)?;
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        if tokens.first() != Some(&bos) {
            tokens.insert(0, bos);
            bytes.insert(0, 0..0);
        }
    }
    Ok(Encoded { tokens, bytes })
}

/// Walks the pieces along the text. Two departures are known and followed: a space that is not in the text, which
/// SentencePiece vocabularies add, and whitespace that is in no token, which some special tokens swallow.
fn locate(
    tokenizer: &dyn Tokenizer,
    tokens: &[i32],
    text: &str,
    origin: &Origin,
) -> Result<Vec<Range<usize>>> {
    let text = text.as_bytes();
    let mut at = 0;
    let mut bytes = Vec::with_capacity(tokens.len());
    for &token in tokens {
        let piece = tokenizer.piece(token)?;
        let mut start = at;
        let len = loop {
            let rest = &text[start..];
            if rest.starts_with(&piece) {
                break piece.len();
            }
            if let Some(bare) = piece.strip_prefix(b" ").filter(|bare| rest.starts_with(bare)) {
                break bare.len();
            }
            match rest.first() {
                Some(b) if b.is_ascii_whitespace() => start += 1,
                _ => {
                    let shown = |b: &[u8]| String::from_utf8_lossy(&b[..b.len().min(16)]).into_owned();
                    return Err(Error::Misaligned {
                        origin: origin.clone(),
                        byte: at,
                        expected: shown(&text[at..]),
                        found: format!("`{}` (token {token})", shown(&piece)),
                    });
                }
            }
        };
        bytes.push(start..start + len);
        at = start + len;
    }
    if text[at..].iter().any(|b| !b.is_ascii_whitespace()) {
        let expected = String::from_utf8_lossy(&text[at..text.len().min(at + 16)]).into_owned();
        return Err(Error::Misaligned { origin: origin.clone(), byte: at, expected, found: "ended".into() });
    }
    Ok(bytes)
}
