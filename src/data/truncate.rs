//! Making a sample fit `seq_len` at the cost of its prompt, not of its answer.

use super::encode::Rendered;
use super::sample::Truncation;

/// Share of a row that is left to the prompt when the answer alone would fill it: an answer to nothing teaches little.
const LEAST_PROMPT_SHARE: usize = 8;

/// Shortens to at most `seq_len` tokens, in this order:
///
/// 1. what follows the last answer goes;
/// 2. the prompt loses its oldest tokens, but keeps BOS and the system message if they leave room for an eighth of a row
///    of what stands right before the answer (BOS alone otherwise);
/// 3. an answer that still does not fit keeps its head.
///
/// The rest of an earlier answer that lost its beginning is no longer trained.
pub(super) fn truncate(rendered: &mut Rendered, seq_len: usize) {
    let n = rendered.sample.len();
    if n <= seq_len {
        return;
    }
    let (start, end) = (rendered.sample.answer_start, rendered.sample.answer_end);
    let answer = end - start;
    let least_prompt = (seq_len / LEAST_PROMPT_SHARE).max(1).min(start);
    let room = seq_len.saturating_sub(answer).max(if answer < seq_len { 0 } else { least_prompt }).min(start);
    let header = [rendered.n_header, 1]
        .into_iter()
        .find(|h| *h <= rendered.n_header && h + least_prompt <= room)
        .unwrap_or(0);
    // [0, header) ++ [cut, start) ++ [start, stop)
    let cut = start - (room - header).min(start - header);
    let kept_prompt = header + (start - cut);
    let stop = end.min(start + (seq_len - kept_prompt));

    for turn in &rendered.turns {
        if turn.start < cut && cut < turn.end {
            rendered.sample.train[cut..turn.end.min(start)].fill(false);
        }
    }
    let keep = |i: usize| i < header || (cut..stop).contains(&i);
    let mut i = 0;
    rendered.sample.tokens.retain(|_| (keep(i), i += 1).0);
    i = 0;
    rendered.sample.train.retain(|_| (keep(i), i += 1).0);
    rendered.sample.answer_start = kept_prompt;
    rendered.sample.answer_end = kept_prompt + (stop - start);
    rendered.sample.truncated = Some(Truncation { original: n, answer_cut: stop < end });
}
