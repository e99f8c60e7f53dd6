//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Read and written as the `peft` Python package does for LoRA on causal language models. Variants whose result another
//! formula gives (DoRA, biases, per-module alphas) are refused rather than bent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::Dtype as SafeDtype;
use serde_json::{json, Value};

use super::error::{Error, Result};
use super::names::{self, Direction};
use crate::ggml::GgufFile;
use crate::model::adapter::{AdapterPair, Heads, Matrix};
use crate::model::{AdapterFile, Hparams, Target};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Writes an adapter as a new PEFT folder, whole or not at all. `heads` stand in where the file does not say them.
pub fn write(adapter: &AdapterFile, heads: Option<Heads>, dir: &Path) -> Result<()> {
    if dir.exists() && !(dir.is_dir() && fs::read_dir(dir).is_ok_and(|mut d| d.next().is_none())) {
        return Err(Error::Exists { path: dir.into() });
    }
    let heads = adapter.heads.or(heads);
    let mut tensors: BTreeMap<String, ([usize; 2], Vec<u8>)> = BTreeMap::new();
    let mut layers: BTreeMap<usize, BTreeSet<&'static str>> = BTreeMap::new();
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for pair in &adapter.pairs {
        let (layer, target) = names::parse_gguf(&pair.tensor)
            .ok_or_else(|| Error::NoName { path: adapter.path.clone(), tensor: pair.tensor.clone() })?;
        let b = match names::heads_to_permute(&adapter.architecture, target)? {
            None => pair.b.clone(),
            Some(of) => {
                let heads = heads.ok_or_else(|| Error::HeadsUnknown {
                    path: adapter.path.clone(),
                    tensor: pair.tensor.clone(),
                })?;
                names::permute(&pair.b, &pair.tensor, of(heads), Direction::ToHf)?
            }
        };
        let module = names::module(layer, target);
        for (half, m) in [("lora_A", &pair.a), ("lora_B", &b)] {
            let shape = [m.ne[1] as usize, m.ne[0] as usize];
            let bytes = m.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensors.insert(format!("base_model.model.{module}.{half}.weight"), (shape, bytes));
        }
        layers.entry(layer).or_default().insert(target.hf_name());
        ranks.insert(module, pair.rank());
    }
    let config = config(adapter, &layers, &ranks);

    let io = |action| move |source| Error::Io { path: dir.into(), action, source };
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temp =
        tempfile::Builder::new().prefix(".peft-").tempdir_in(parent).map_err(io("create the folder"))?;
    let views: Vec<(&String, TensorView)> = tensors
        .iter()
        .map(|(name, (shape, bytes))| {
            let view =
                TensorView::new(SafeDtype::F32, shape.to_vec(), bytes).expect("bytes are of this shape");
            (name, view)
        })
        .collect();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|source| Error::Safetensors { path: dir.join(WEIGHTS), source })?;
    let text = serde_json::to_vec_pretty(&config)
        .map_err(|source| Error::Json { path: dir.join(CONFIG), source })?;
    for (name, bytes) in [(WEIGHTS, bytes), (CONFIG, text)] {
        let path = temp.path().join(name);
        fs::write(&path, bytes)
            .and_then(|()| fs::File::open(&path)?.sync_all())
            .map_err(io("write the folder"))?;
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755))
            .map_err(io("write the folder"))?;
    }
    fs::rename(temp.path(), dir).map_err(io("put the folder in its place"))?;
    let _ = temp.keep();
    Ok(())
}

/// `adapter_config.json`. Modules are named by kind where every adapted layer has the same, else one by one.
fn config(
    adapter: &AdapterFile,
    layers: &BTreeMap<usize, BTreeSet<&'static str>>,
    ranks: &BTreeMap<String, usize>,
) -> Value {
    let kinds: BTreeSet<&str> = layers.values().flatten().copied().collect();
    let even = layers.values().all(|l| *l == kinds) && layers.keys().copied().eq(0..layers.len());
    let modules: Vec<String> = match even {
        true => kinds.into_iter().map(String::from).collect(),
        false => ranks.keys().cloned().collect(),
    };
    // `r` is the most frequent rank; PEFT takes the others, and the alphas that keep their scale, as patterns.
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    ranks.values().for_each(|r| *counts.entry(*r).or_default() += 1);
    let rank = counts.into_iter().max_by_key(|&(_, n)| n).map_or(0, |(r, _)| r);
    let others: BTreeMap<&String, usize> =
        ranks.iter().filter(|(_, r)| **r != rank).map(|(m, r)| (m, *r)).collect();
    // Alpha 0 means "scale 1" to llama.cpp; that is alpha = rank in PEFT.
    let alpha = if adapter.alpha == 0.0 { rank as f32 } else { adapter.alpha };
    let alphas: BTreeMap<&String, usize> = match adapter.alpha == 0.0 {
        true => others.clone(),
        false => BTreeMap::new(),
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": others,
        "alpha_pattern": alphas,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_rslora": false,
        "use_dora": false,
    })
}

/// Reads a PEFT folder as an adapter of `base`.
pub fn read(dir: &Path, base: &GgufFile) -> Result<AdapterFile> {
    let hp = Hparams::from_gguf(base)?;
    let heads = Heads { n_head: hp.n_head, n_head_kv: hp.n_head_kv };
    let alpha = Alpha::read(&dir.join(CONFIG))?;
    let path = dir.join(WEIGHTS);
    let bytes = fs::read(&path).map_err(|source| Error::Io {
        path: path.clone(),
        action: "read the file",
        source,
    })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|source| Error::Safetensors { path: path.clone(), source })?;

    let mut halves: BTreeMap<(usize, Target), [Option<Matrix>; 2]> = BTreeMap::new();
    for (key, view) in file.iter() {
        let (layer, target, is_b) = names::parse_peft(key).ok_or_else(|| Error::Tensor {
            path: path.clone(),
            tensor: key.into(),
            expected: "`lora_A` or `lora_B` of a linear layer".into(),
            found: "another name".into(),
        })?;
        halves.entry((layer, target)).or_default()[usize::from(is_b)] = Some(matrix(&path, key, &view)?);
    }
    let mut adapter = AdapterFile {
        path: path.clone(),
        architecture: hp.architecture.clone(),
        alpha: 0.0,
        heads: Some(heads),
        base: base.get_str("general.name")?.map(Into::into),
        pairs: Vec::new(),
    };
    for ((layer, target), halves) in halves {
        let tensor = target.tensor_name(layer);
        let [Some(a), Some(b)] = halves else {
            return Err(Error::Tensor {
                path,
                tensor: names::module(layer, target),
                expected: "both `lora_A` and `lora_B`".into(),
                found: "one of them".into(),
            });
        };
        if a.ne[1] != b.ne[0] {
            return Err(Error::Tensor {
                path,
                tensor: names::module(layer, target),
                expected: format!("`lora_B` of rank {}", a.ne[1]),
                found: format!("rank {}", b.ne[0]),
            });
        }
        let b = match names::heads_to_permute(&hp.architecture, target)? {
            None => b,
            Some(of) => names::permute(&b, &tensor, of(heads), Direction::ToGguf)?,
        };
        adapter.pairs.push(AdapterPair { tensor, a, b });
    }
    let rank = adapter.rank().ok_or_else(|| Error::Config {
        path: dir.join(CONFIG),
        field: "rank_pattern",
        found: "set, or there are no layers".into(),
        expected: "one rank for all layers",
    })?;
    adapter.alpha = alpha.for_rank(rank);
    adapter.check_against(base)?;
    Ok(adapter)
}

/// What `adapter_config.json` says of the scale.
struct Alpha {
    alpha: f32,
    rank_stabilised: bool,
}

impl Alpha {
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::Io {
            path: path.into(),
            action: "read the file",
            source,
        })?;
        let config: Value =
            serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.into(), source })?;
        let check = |field: &'static str, ok: bool, expected: &'static str| match ok {
            true => Ok(()),
            false => {
                Err(Error::Config { path: path.into(), field, found: config[field].to_string(), expected })
            }
        };
        let unset = |v: &Value| v.is_null() || v == &json!(false) || v == &json!({}) || v == &json!([]);
        check("peft_type", config["peft_type"] == "LORA", "`LORA`")?;
        check("use_dora", unset(&config["use_dora"]), "false")?;
        check("bias", config["bias"].is_null() || config["bias"] == "none", "`none`")?;
        check("alpha_pattern", unset(&config["alpha_pattern"]), "none")?;
        check("modules_to_save", unset(&config["modules_to_save"]), "none")?;
        check(
            "lora_alpha",
            config["lora_alpha"].as_f64().is_some_and(|a| a.is_finite() && a > 0.0),
            "a positive number",
        )?;
        let alpha = config["lora_alpha"].as_f64().unwrap_or_default() as f32;
        Ok(Self { alpha, rank_stabilised: config["use_rslora"] == true })
    }

    /// Rank-stabilised LoRA divides by the root of the rank; llama.cpp always divides by the rank.
    fn for_rank(&self, rank: usize) -> f32 {
        if self.rank_stabilised {
            self.alpha * (rank as f32).sqrt()
        } else {
            self.alpha
        }
    }
}

fn matrix(path: &Path, key: &str, view: &TensorView) -> Result<Matrix> {
    let wrong = |expected: &str, found: String| Error::Tensor {
        path: path.into(),
        tensor: key.into(),
        expected: expected.into(),
        found,
    };
    let &[rows, n_per_row] = view.shape() else {
        return Err(wrong("a matrix", format!("{:?}", view.shape())));
    };
    let bytes = view.data();
    let half = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]);
    let data: Vec<f32> = match view.dtype() {
        SafeDtype::F32 => {
            bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
        }
        SafeDtype::F16 => bytes.chunks_exact(2).map(|c| half::f16::from_bits(half(c)).to_f32()).collect(),
        SafeDtype::BF16 => bytes.chunks_exact(2).map(|c| half::bf16::from_bits(half(c)).to_f32()).collect(),
        other => return Err(wrong("F32, F16 or BF16", format!("{other:?}"))),
    };
    if data.is_empty() {
        return Err(wrong("some values", format!("{:?}", view.shape())));
    }
    Ok(Matrix { ne: [n_per_row as i64, rows as i64], data })
}
