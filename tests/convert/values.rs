//! Each linear layer's ternary values and scale against what transformers computes of the checkpoint.

use qvac_ft::ggml::{Dtype, GgufFile};
use safetensors::SafeTensors;

use crate::checkpoint::{json, sha256, values, Checkpoint, CASES};

/// The mean of a matrix is a sum in f64 here and in f32 there.
const MEAN_TOLERANCE: f64 = 1e-6;
/// The least that holds a f32 after two roundings.
const SCALE_TOLERANCE: f64 = 2e-7;

/// `model.layers.0.self_attn.q_proj.weight` → `blk.0.attn_q`
fn gguf_name(hf: &str) -> String {
    let parts: Vec<&str> = hf.split('.').collect();
    let role = match parts[4] {
        "q_proj" => "attn_q",
        "k_proj" => "attn_k",
        "v_proj" => "attn_v",
        "o_proj" => "attn_output",
        "gate_proj" => "ffn_gate",
        "up_proj" => "ffn_up",
        "down_proj" => "ffn_down",
        other => panic!("no role for `{other}`"),
    };
    format!("blk.{}.{role}", parts[2])
}

/// What a matrix should look like, from the configuration alone.
struct Shape {
    head: usize,
    padded_head: usize,
    interleaved: bool,
    n_in: usize,
    n_out: usize,
    padded_in: usize,
    /// sqrt of padded over plain: of the residual stream, of heads, of the FFN before a norm.
    gains: [f64; 3],
}

impl Shape {
    fn new(c: &Checkpoint, hf: &str) -> Self {
        let config = json(&c.path().join("config.json"));
        let size = |name: &str| config[name].as_u64().unwrap() as usize;
        let (n_embd, n_ff, n_head) =
            (size("hidden_size"), size("intermediate_size"), size("num_attention_heads"));
        let n_head_kv = size("num_key_value_heads");
        let head = n_embd / n_head;
        let llama = config["architectures"][0] == "LlamaForCausalLM";
        let wide = n_embd.next_multiple_of(256);
        let padded_head = if llama { head } else { wide / n_head };
        let ff = n_ff.next_multiple_of(256);
        let gain = |to: usize, from: usize| (to as f64 / from as f64).sqrt();
        let gains = [gain(wide, n_embd), gain(padded_head, head), if llama { 1.0 } else { gain(ff, n_ff) }];
        let role = hf.split('.').nth(4).unwrap();
        let (n_in, n_out, padded_in) = match role {
            "q_proj" => (n_embd, n_embd, wide),
            "k_proj" | "v_proj" => (n_embd, n_head_kv * head, wide),
            "o_proj" => (n_embd, n_embd, padded_head * n_head),
            "down_proj" => (n_ff, n_embd, ff),
            _ => (n_embd, n_ff, wide),
        };
        let interleaved = llama && matches!(role, "q_proj" | "k_proj");
        Self { head, padded_head, interleaved, n_in, n_out, padded_in, gains }
    }

    /// Where value `[row, col]` of the checkpoint lies in the file.
    fn place(&self, role: &str, row: usize, col: usize) -> usize {
        let by_head = |i: usize| i / self.head * self.padded_head + i % self.head;
        let row = match role {
            "q_proj" | "k_proj" | "v_proj" => {
                let (start, at) = (row / self.head * self.head, row % self.head);
                let half = self.head / 2;
                by_head(if self.interleaved { start + at % half * 2 + at / half } else { row })
            }
            _ => row,
        };
        let col = if role == "o_proj" { by_head(col) } else { col };
        row * self.padded_in + col
    }

    /// What padding multiplies this matrix by.
    fn gain(&self, role: &str) -> f64 {
        let [embd, heads, ff] = self.gains;
        match role {
            "q_proj" => heads,
            "up_proj" => ff / embd,
            _ => 1.0,
        }
    }
}

fn check(c: &Checkpoint, dtype: Dtype) -> usize {
    let (path, _) = c.convert_as(dtype, Dtype::F16);
    let file = GgufFile::open(&path).unwrap();
    let mut n = 0;
    for (hf, expected) in c.manifest["matrices"].as_object().unwrap() {
        let role = hf.split('.').nth(4).unwrap();
        let shape = Shape::new(c, hf);
        let name = gguf_name(hf);
        let info = file.require_tensor(&format!("{name}.weight")).unwrap();
        assert_eq!(info.dtype, dtype, "{name}");
        let values = file.read_f32(info).unwrap();
        let own = file.tensor(&format!("{name}.scale")).map_or(1.0, |t| file.read_f32(t).unwrap()[0]);
        let mut trits = vec![0u8; shape.n_in * shape.n_out];
        for row in 0..shape.n_out {
            for col in 0..shape.n_in {
                let value = values[shape.place(role, row, col)];
                trits[row * shape.n_in + col] = if value == 0.0 { 0 } else { value.signum() as i8 as u8 };
            }
        }
        assert_eq!(expected["sha256"], sha256(&trits), "{hf}");
        let n_padded = values.iter().filter(|x| **x != 0.0).count();
        assert_eq!(n_padded, trits.iter().filter(|t| **t != 0).count(), "{hf}: padding is zeros");
        let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        let Some(scale) = expected["scale"].as_f64() else {
            n += 1;
            continue;
        };
        let tied = values.iter().all(|x| *x == 0.0 || x.abs() == largest);
        assert!(tied, "{hf}: one scale for all blocks");
        let found = f64::from(largest) * f64::from(own) / shape.gain(role);
        let packed = c.path().join("model-00001-of-00002.safetensors").exists()
            && c.manifest["files"].as_object().unwrap().len() == 1;
        let tolerance = if packed { 0.0 } else { MEAN_TOLERANCE + SCALE_TOLERANCE };
        let error = (found / scale - 1.0).abs();
        assert!(error <= tolerance, "{hf}: scale {found}, expected {scale}");
        n += 1;
    }
    n
}

#[test]
fn every_ternary_value_and_scale_is_kept() {
    for case in CASES {
        let c = Checkpoint::new(case);
        for dtype in [Dtype::TQ1_0, Dtype::TQ2_0] {
            assert!(check(&c, dtype) >= 7, "{case}");
        }
    }
}

/// The other types hold ternary values as well, where no width has to be padded for blocks of 256.
#[test]
fn other_types_hold_the_same_values() {
    for case in ["bitnet-packed", "bitnet-silu", "llama-packed", "llama-masters"] {
        let c = Checkpoint::new(case);
        for dtype in [Dtype::F16, Dtype::Q8_0] {
            assert!(check(&c, dtype) >= 7, "{case}");
        }
    }
}

/// TriLM's scales differ from block to block, and each is where it was.
#[test]
fn scales_of_blocks_are_kept() {
    let c = Checkpoint::new("trilm");
    let (path, done) = c.convert_as(Dtype::TQ1_0, Dtype::F16);
    assert_eq!((done.n_scales, done.rounded), (0, None), "f16 values have f16 scales");
    let file = GgufFile::open(path).unwrap();
    let info = file.require_tensor("blk.0.attn_output.weight").unwrap();
    let values = file.read_f32(info).unwrap();
    let largest = |half: &[f32]| half.iter().fold(0f32, |m, x| m.max(x.abs()));
    let (first, second) = values.split_at(values.len() / 2);
    assert_eq!((largest(first), largest(second)), (24.0 / 1024.0, 28.0 / 1024.0));
}

/// Where the widths of TriLM's devices end inside a block of 256, blocks of 32 hold what TQ1_0 could not.
#[test]
fn scales_that_change_inside_a_block_are_kept_in_smaller_ones() {
    let c = Checkpoint::new("trilm");
    let name = "model.layers.0.self_attn.o_proj.weight";
    let (shard, _) = c.manifest["files"]
        .as_object()
        .unwrap()
        .iter()
        .find(|(_, tensors)| tensors.as_array().unwrap().iter().any(|t| t["name"] == name))
        .unwrap();
    let path = c.path().join(shard);
    let mut bytes = std::fs::read(&path).unwrap();
    let (header, table) = SafeTensors::read_metadata(&bytes).unwrap();
    let (start, end) = table.info(name).unwrap().data_offsets;
    let values = &mut bytes[header + 8 + start..header + 8 + end];
    let mut expected = Vec::new();
    for (i, b) in values.chunks_exact_mut(2).enumerate() {
        let half = if i % 256 < 96 { 0.5 } else { 1.0 };
        let x = half::f16::from_f32(half::f16::from_le_bytes([b[0], b[1]]).to_f32() * half);
        b.copy_from_slice(&x.to_le_bytes());
        expected.push(x.to_f32());
    }
    std::fs::write(&path, bytes).unwrap();
    let (path, done) = c.convert_as(Dtype::TQ1_0, Dtype::F16);
    assert_eq!(done.fallbacks, [("blk.0.attn_output.weight".to_owned(), Dtype::Q8_0)]);
    let file = GgufFile::open(path).unwrap();
    assert_eq!(file.read_f32(file.require_tensor("blk.0.attn_output.weight").unwrap()).unwrap(), expected);
}

/// A network that is not ternary keeps its floats, in the order of upstream's rope where that is another.
#[test]
fn floats_are_kept_where_nothing_is_ternary() {
    let c = Checkpoint::new("llama-masters");
    let path = c.path().join("config.json");
    let mut config = json(&path);
    config["quantization_config"] = serde_json::Value::Null;
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let (path, done) = c.convert_as(Dtype::F16, Dtype::F16);
    assert_eq!((done.zeros, done.n_scales), (None, 0));
    let file = GgufFile::open(path).unwrap();
    for hf in ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"] {
        let shape = Shape::new(&c, hf);
        let expected = values("masters", &format!("llama-masters/{hf}"), shape.n_in * shape.n_out);
        let info = file.require_tensor(&format!("{}.weight", gguf_name(hf))).unwrap();
        let found = file.read_f32(info).unwrap();
        let role = hf.split('.').nth(4).unwrap();
        for (i, x) in expected.iter().enumerate() {
            assert_eq!(found[shape.place(role, i / shape.n_in, i % shape.n_in)], *x, "{hf}: {i}");
        }
    }
}
