//! The same matrix in GGUF and in Hugging Face's models: its name, and the order of its rows.
//!
//! Both keep `lora_a`/`lora_A` and `lora_b`/`lora_B` as the same bytes, with one exception. Hugging Face rotates value `j`
//! of a head together with value `j + d/2`; upstream's `llama` architecture rotates neighbours (`LLAMA_ROPE_TYPE_NORM`),
//! and its converter reorders the rows of queries and keys for it. So the rows of their B move, and nothing else does.
//! `bitnet` rotates as Hugging Face does (`LLAMA_ROPE_TYPE_NEOX`) and keeps its rows.

use crate::ggml::RopeKind;
use crate::model::adapter::{Heads, Matrix};
use crate::model::{Architecture, Target, ARCHITECTURES};

use super::error::{Error, Result};

/// Which way rows are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToHf,
    ToGguf,
}

/// `blk.3.attn_q.weight` → its layer and target.
pub(super) fn parse_gguf(tensor: &str) -> Option<(usize, Target)> {
    let (layer, name) = tensor.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
    let target = Target::ALL.into_iter().find(|t| t.name() == name)?;
    Some((layer.parse().ok()?, target))
}

/// The module's name in a Hugging Face model: `model.layers.3.self_attn.q_proj`.
pub(super) fn module(layer: usize, target: Target) -> String {
    let part = match target {
        Target::AttnQ | Target::AttnK | Target::AttnV | Target::AttnOutput => "self_attn",
        Target::FfnGate | Target::FfnUp | Target::FfnDown => "mlp",
    };
    format!("model.layers.{layer}.{part}.{}", target.hf_name())
}

/// `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight` → layer, target, and whether it is B. PEFT puts the
/// adapter's name before `weight` when it saves from memory; both are read.
pub(super) fn parse_peft(key: &str) -> Option<(usize, Target, bool)> {
    let rest = key.strip_prefix("base_model.model.")?.strip_prefix("model.layers.")?;
    let parts: Vec<&str> = rest.split('.').collect();
    let (layer, module_part, name, half) = match parts[..] {
        [layer, part, name, half, "weight"] | [layer, part, name, half, "default", "weight"] => {
            (layer.parse().ok()?, part, name, half)
        }
        _ => return None,
    };
    let target = Target::ALL.into_iter().find(|t| t.hf_name() == name)?;
    let is_b = match half {
        "lora_A" => false,
        "lora_B" => true,
        _ => return None,
    };
    module(layer, target).contains(&format!(".{module_part}.")).then_some((layer, target, is_b))
}

/// The architecture of that name.
pub(super) fn architecture(name: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| Error::Architecture {
        found: name.into(),
        known: ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", "),
    })
}

/// Picks the heads over which a matrix is ordered.
type HeadsOf = fn(Heads) -> usize;

/// Whether the rows of this layer's B differ between the two, and over how many heads.
pub(super) fn heads_to_permute(name: &str, target: Target) -> Result<Option<HeadsOf>> {
    let arch = architecture(name)?;
    Ok(match (arch.block.rope, target) {
        (RopeKind::Norm, Target::AttnQ) => Some(|h| h.n_head),
        (RopeKind::Norm, Target::AttnK) => Some(|h| h.n_head_kv),
        _ => None,
    })
}

/// Moves the rows of a query's or key's matrix.
pub(super) fn permute(m: &Matrix, tensor: &str, n_head: usize, direction: Direction) -> Result<Matrix> {
    let (n_per_row, n_rows) = (m.ne[0] as usize, m.ne[1] as usize);
    if n_head == 0 || n_rows % (2 * n_head) != 0 {
        return Err(Error::HeadRows { tensor: tensor.into(), n_rows, n_head });
    }
    let size = n_rows / n_head;
    let mut data = Vec::with_capacity(m.data.len());
    for to in 0..n_rows {
        let (head, place) = (to / size, to % size);
        let from = match direction {
            // Neighbours 2j, 2j + 1 become j, j + size / 2.
            Direction::ToHf => 2 * (place % (size / 2)) + place / (size / 2),
            Direction::ToGguf => place / 2 + (place % 2) * (size / 2),
        };
        let from = head * size + from;
        data.extend_from_slice(&m.data[from * n_per_row..(from + 1) * n_per_row]);
    }
    Ok(Matrix { ne: m.ne, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for target in Target::ALL {
            assert_eq!(parse_gguf(&target.tensor_name(12)), Some((12, target)));
            let module = module(12, target);
            for (half, is_b) in [("lora_A", false), ("lora_B", true)] {
                for tail in ["weight", "default.weight"] {
                    let key = format!("base_model.model.{module}.{half}.{tail}");
                    assert_eq!(parse_peft(&key), Some((12, target, is_b)), "{key}");
                }
            }
        }
        assert_eq!(module(0, Target::AttnOutput), "model.layers.0.self_attn.o_proj");
        assert_eq!(module(0, Target::FfnDown), "model.layers.0.mlp.down_proj");
        for wrong in [
            "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
            "base_model.model.lm_head.lora_A.weight",
            "model.layers.0.self_attn.q_proj.lora_A.weight",
        ] {
            assert_eq!(parse_peft(wrong), None, "{wrong}");
        }
        assert_eq!(parse_gguf("output.weight"), None);
    }

    /// Rotates one head: pairs `(first(j), second(j))` by `pos / 10000^(2j/d)`.
    fn rope(x: &[f64], pos: f64, pair: impl Fn(usize) -> (usize, usize)) -> Vec<f64> {
        let mut y = x.to_vec();
        for j in 0..x.len() / 2 {
            let (a, b) = pair(j);
            let (sin, cos) = (pos * 10000f64.powf(-2.0 * j as f64 / x.len() as f64)).sin_cos();
            (y[a], y[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        }
        y
    }

    /// The point of the reordering: with each side's own rotation, attention scores are the same.
    #[test]
    fn attention_scores_agree_with_each_sides_rotation() {
        let (n_in, n_head, size) = (6, 3, 8);
        let matrix = |seed: usize| Matrix {
            ne: [n_in as i64, (n_head * size) as i64],
            data: (0..n_in * n_head * size)
                .map(|i| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0)
                .collect(),
        };
        let project = |m: &Matrix, x: &[f64]| -> Vec<f64> {
            m.data.chunks(n_in).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
        };
        let halves = |j| (j, j + size / 2);
        let neighbours = |j| (2 * j, 2 * j + 1);
        let (q, k) = (matrix(1), matrix(2));
        let gguf = |m| permute(m, "t", n_head, Direction::ToGguf).unwrap();
        let (q_gguf, k_gguf) = (gguf(&q), gguf(&k));
        let (x, y) = ([0.3, -1.0, 0.7, 0.2, -0.4, 1.1], [1.0, 0.5, -0.6, 0.9, 0.1, -0.8]);
        for head in 0..n_head {
            let part = |v: Vec<f64>| v[head * size..(head + 1) * size].to_vec();
            let dot = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>();
            let hf =
                dot(rope(&part(project(&q, &x)), 9.0, halves), rope(&part(project(&k, &y)), 4.0, halves));
            let ours = dot(
                rope(&part(project(&q_gguf, &x)), 9.0, neighbours),
                rope(&part(project(&k_gguf, &y)), 4.0, neighbours),
            );
            assert!((hf - ours).abs() < 1e-9, "head {head}: {hf} and {ours}");
        }
        assert_ne!(q, q_gguf);
        assert_eq!(q, permute(&q_gguf, "t", n_head, Direction::ToHf).unwrap());
        assert!(matches!(permute(&q, "t", 5, Direction::ToHf), Err(Error::HeadRows { .. })));
    }

    #[test]
    fn only_queries_and_keys_of_llama_move() {
        let heads = Heads { n_head: 9, n_head_kv: 3 };
        let over = |arch, target| heads_to_permute(arch, target).unwrap().map(|of| of(heads));
        assert_eq!(over("llama", Target::AttnQ), Some(9));
        assert_eq!(over("llama", Target::AttnK), Some(3));
        assert_eq!(over("llama", Target::AttnV), None);
        for arch in ["bitnet", "bitnet-b1.58"] {
            assert!(Target::ALL.into_iter().all(|t| over(arch, t).is_none()), "{arch}");
        }
        assert!(matches!(heads_to_permute("mamba", Target::AttnQ), Err(Error::Architecture { .. })));
    }
}
