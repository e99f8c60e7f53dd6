//! A small tokenizer for the data tests: words with the space before them, single characters, and special tokens.
//!
//! It learns its vocabulary as it goes, so that expected masks can be read as words; a text always gives the same split.

use std::cell::RefCell;

use qvac_ft::data::{Error, LossOn, Options, Sample, Tokenizer};

const SPECIAL: [&str; 14] = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<unk>",
];
const EOG: [&str; 4] = ["</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"];

pub(crate) struct Words {
    vocab: RefCell<Vec<String>>,
    pub add_bos: bool,
    /// Puts a space before the text and behind every special token, as SentencePiece vocabularies do.
    pub space_prefix: bool,
}

impl Words {
    pub(crate) fn new() -> Self {
        let vocab = SPECIAL.iter().map(|s| (*s).to_owned()).collect();
        Self { vocab: RefCell::new(vocab), add_bos: true, space_prefix: false }
    }

    pub(crate) fn piece_text(&self, token: i32) -> String {
        self.vocab.borrow()[token as usize].clone()
    }

    fn id(&self, piece: &str) -> i32 {
        let mut vocab = self.vocab.borrow_mut();
        let at = vocab.iter().position(|p| p == piece).unwrap_or_else(|| {
            vocab.push(piece.to_owned());
            vocab.len() - 1
        });
        at as i32
    }

    fn words(&self, text: &str, out: &mut Vec<i32>) {
        let spaced = format!(" {text}");
        let mut rest = if self.space_prefix && !text.is_empty() { spaced.as_str() } else { text };
        while let Some(first) = rest.chars().next() {
            let head = if first == ' ' { 1 } else { 0 };
            let word = rest[head..].find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len() - head);
            let len = if word > 0 { head + word } else { first.len_utf8() };
            out.push(self.id(&rest[..len]));
            rest = &rest[len..];
        }
    }
}

impl Tokenizer for Words {
    fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>, Error> {
        let mut out = Vec::new();
        if add_special && self.add_bos {
            out.push(0);
        }
        let mut rest = text;
        while !rest.is_empty() {
            let next = SPECIAL
                .iter()
                .filter(|_| parse_special)
                .filter_map(|s| rest.find(s).map(|at| (at, *s)))
                .min_by_key(|(at, _)| *at);
            let Some((at, special)) = next else {
                self.words(rest, &mut out);
                break;
            };
            self.words(&rest[..at], &mut out);
            out.push(self.id(special));
            rest = &rest[at + special.len()..];
        }
        Ok(out)
    }

    fn piece(&self, token: i32) -> Result<Vec<u8>, Error> {
        Ok(self.piece_text(token).into_bytes())
    }

    fn bos(&self) -> Option<i32> {
        Some(0)
    }

    fn eos(&self) -> Option<i32> {
        Some(1)
    }

    fn eot(&self) -> Option<i32> {
        None
    }

    fn add_bos(&self) -> bool {
        self.add_bos
    }

    fn is_eog(&self, token: i32) -> bool {
        EOG.contains(&self.piece_text(token).as_str())
    }

    fn is_special(&self, token: i32) -> bool {
        (token as usize) < SPECIAL.len()
    }
}

/// Every token of a sample: «trained», [not].
pub(crate) fn show(sample: &Sample, words: &Words) -> String {
    let one = |(token, train): (&i32, &bool)| {
        let piece = words.piece_text(*token).replace('\n', "\\n");
        if *train {
            format!("«{piece}»")
        } else {
            format!("[{piece}]")
        }
    };
    sample.tokens.iter().zip(&sample.train).map(one).collect()
}

pub(crate) fn options() -> Options<'static> {
    Options {
        chat_template: None,
        model_template: None,
        loss_on: LossOn::Assistant,
        seq_len: 512,
        time: None,
    }
}
