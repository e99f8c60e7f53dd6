//! A byte-level BPE vocabulary of any size, made here: every UTF-8 text goes through it and comes back.
//!
//! The first merges are learnt from a page of plain English (`corpus.txt`), so that ordinary text takes few tokens; the
//! rest of the vocabulary joins pieces that are there already. Nothing is random. libllama reads it as a `gpt2`
//! vocabulary with the `qwen2` splitter, the one that neither adds nor takes away a space when text is put back together.

use std::collections::{BTreeMap, HashMap, HashSet};

/// What `<|im_start|>role\n…<|im_end|>\n` looks like as a Jinja template.
pub const CHAT_TEMPLATE: &str = "{%- for m in messages -%}\
{{ '<|im_start|>' ~ m['role'] ~ '\n' ~ m['content'] ~ '<|im_end|>\n' }}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}";

/// Special tokens; their ids are their places.
pub(super) const SPECIAL: [&str; 4] = ["<|endoftext|>", "<|begin_of_text|>", "<|im_start|>", "<|im_end|>"];
pub(super) const EOS: u32 = 0;
pub(super) const BOS: u32 = 1;
pub(super) const EOT: u32 = 3;

/// Smallest vocabulary: the special tokens and every byte.
pub(super) const MIN_VOCAB: usize = SPECIAL.len() + 256;

/// Longest piece that is made by joining, in characters.
const MAX_PIECE: usize = 12;

const TYPE_NORMAL: i32 = 1;
const TYPE_CONTROL: i32 = 3;

/// What goes into `tokenizer.ggml.*`.
pub struct Vocabulary {
    pub tokens: Vec<String>,
    /// `llama_token_type` of each.
    pub types: Vec<i32>,
    /// Pairs of pieces, in the order in which they are merged.
    pub merges: Vec<String>,
}

/// The character that stands for a byte in GPT-2's vocabulary: itself where it is printable, else one from 256 on.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let place = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + place).expect("256 to 323 are characters")
}

impl Vocabulary {
    /// A vocabulary of exactly `n_vocab` tokens, at least [`MIN_VOCAB`].
    pub fn new(n_vocab: usize) -> Self {
        assert!(n_vocab >= MIN_VOCAB, "{n_vocab} tokens cannot hold every byte");
        let mut tokens: Vec<String> = SPECIAL.map(String::from).into();
        tokens.extend((0..=255u8).map(|b| byte_char(b).to_string()));
        let mut merges = Vec::new();
        let mut known: HashSet<String> = tokens.iter().cloned().collect();
        let mut add = |left: &str, right: &str, tokens: &mut Vec<String>| {
            let joined = format!("{left}{right}");
            if tokens.len() < n_vocab && !known.contains(&joined) {
                merges.push(format!("{left} {right}"));
                known.insert(joined.clone());
                tokens.push(joined);
            }
        };
        for (left, right) in learn(include_str!("corpus.txt"), n_vocab - tokens.len()) {
            add(&left, &right, &mut tokens);
        }
        let words: Vec<String> = tokens[SPECIAL.len()..].iter().filter(|t| is_word(t)).cloned().collect();
        let tails: Vec<&String> = words.iter().filter(|t| !t.starts_with(byte_char(b' '))).collect();
        'fill: for diagonal in 0..words.len() + tails.len() {
            for (i, left) in words.iter().enumerate().take(diagonal + 1) {
                let Some(right) = tails.get(diagonal - i) else { continue };
                if left.chars().count() + right.len() <= MAX_PIECE {
                    add(left, right, &mut tokens);
                }
                if tokens.len() == n_vocab {
                    break 'fill;
                }
            }
        }
        // Only a vocabulary beyond what joining yields comes here.
        for i in tokens.len()..n_vocab {
            tokens.push(format!("<|reserved_{i}|>"));
        }
        let types =
            tokens.iter().map(|t| if t.starts_with("<|") { TYPE_CONTROL } else { TYPE_NORMAL }).collect();
        Self { tokens, types, merges }
    }
}

/// Lowercase ASCII letters, perhaps after a space: what the splitter never cuts inside.
fn is_word(piece: &str) -> bool {
    let letters = piece.strip_prefix(byte_char(b' ')).unwrap_or(piece);
    !letters.is_empty() && letters.bytes().all(|b| b.is_ascii_lowercase())
}

/// Byte-pair merges of a text, the most frequent pair first, ties in the order of the pieces; at most `most` of them.
fn learn(text: &str, most: usize) -> Vec<(String, String)> {
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    for word in text.split_whitespace() {
        let letters = word.trim_matches(|c: char| !c.is_ascii_alphabetic());
        if !letters.is_empty() && letters.bytes().all(|b| b.is_ascii_alphabetic()) {
            *words.entry(format!("{}{letters}", byte_char(b' '))).or_default() += 1;
        }
    }
    let mut words: Vec<(Vec<String>, usize)> =
        words.into_iter().map(|(w, n)| (w.chars().map(String::from).collect(), n)).collect();
    let mut merges = Vec::new();
    while merges.len() < most {
        let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
        for (pieces, n) in &words {
            for pair in pieces.windows(2) {
                *counts.entry((&pair[0], &pair[1])).or_default() += n;
            }
        }
        let best = counts.into_iter().max_by(|(p, n), (q, m)| n.cmp(m).then(q.cmp(p)));
        let Some(((left, right), _)) = best else { break };
        let (left, right) = (left.to_owned(), right.to_owned());
        for (pieces, _) in &mut words {
            let mut i = 0;
            while i + 1 < pieces.len() {
                if pieces[i] == left && pieces[i + 1] == right {
                    let tail = pieces.remove(i + 1);
                    pieces[i].push_str(&tail);
                }
                i += 1;
            }
        }
        merges.push((left, right));
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_has_its_size_and_no_token_twice() {
        for n in [MIN_VOCAB, 512, 32000] {
            let v = Vocabulary::new(n);
            assert_eq!((v.tokens.len(), v.types.len()), (n, n));
            assert_eq!(v.tokens.iter().collect::<HashSet<_>>().len(), n);
            assert_eq!(v.merges.len(), n - MIN_VOCAB, "every piece but the bytes is reached by a merge");
            assert_eq!(v.types.iter().filter(|t| **t == TYPE_CONTROL).count(), SPECIAL.len());
        }
    }

    #[test]
    fn every_merge_joins_pieces_that_are_there_before() {
        let v = Vocabulary::new(4000);
        let place: HashMap<&str, usize> = v.tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
        for (i, merge) in v.merges.iter().enumerate() {
            let (left, right) = merge.split_once(' ').unwrap();
            let joined = MIN_VOCAB + i;
            assert_eq!(v.tokens[joined], format!("{left}{right}"));
            assert!(place[left] < joined && place[right] < joined, "{merge}");
        }
    }

    #[test]
    fn common_words_are_one_token() {
        let v = Vocabulary::new(32000);
        for word in ["Ġthe", "Ġand", "Ġpatients", "Ġtreatment"] {
            assert!(v.tokens.iter().any(|t| t == word), "{word}");
        }
    }
}
