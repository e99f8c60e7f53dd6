//! The keys that say which network a file holds: upstream's names, and bitnet.cpp's for `bitnet-b1.58`.

use std::path::Path;

use super::config::{Family, ModelConfig, RopeScaling};
use super::layout::Layout;
use crate::ggml::gguf::Value;
use crate::ggml::{Dtype, GgufWriter};

/// `llama_ftype` of a file whose linear layers have this type.
pub(super) fn file_type(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F16 => 1,
        Dtype::Q8_0 => 7,
        Dtype::TQ1_0 => 36,
        _ => 37,
    }
}

/// `general.name`: what the configuration calls it, else the folder.
pub(super) fn name(dir: &Path, config: &ModelConfig) -> String {
    let own = config.json["_name_or_path"].as_str().and_then(|path| path.rsplit('/').next());
    let folder =
        dir.canonicalize().ok().and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
    own.filter(|name| !name.is_empty()).map(str::to_owned).or(folder).unwrap_or_else(|| "model".into())
}

pub(super) fn write(name: &str, config: &ModelConfig, layout: &Layout, dtype: Dtype, w: &mut GgufWriter) {
    let arch = config.family.architecture();
    w.set("general.architecture", arch)
        .set("general.type", "model")
        .set("general.name", name)
        .set("general.quantization_version", 2u32)
        .set("general.file_type", file_type(dtype));
    let mut set = |key: &str, value: Value| {
        w.set(&format!("{arch}.{key}"), value);
    };
    let size = |n: usize| Value::from(n as u32);
    set("vocab_size", size(config.n_vocab));
    set("context_length", size(config.n_ctx));
    set("embedding_length", size(layout.embd.to()));
    set("block_count", size(config.n_layer));
    set("feed_forward_length", size(layout.ff.to()));
    set("attention.head_count", size(config.n_head));
    set("attention.head_count_kv", size(config.n_head_kv));
    if config.family == Family::Llama && layout.n_embd_head * config.n_head != layout.embd.to() {
        set("attention.key_length", size(layout.n_embd_head));
        set("attention.value_length", size(layout.n_embd_head));
    }
    let eps = f64::from(config.rms_eps) / layout.embd.gain().powi(2);
    set("attention.layer_norm_rms_epsilon", (eps as f32).into());
    // The width before padding: what was added is not rotated.
    set("rope.dimension_count", size(config.n_embd_head));
    set("rope.freq_base", config.rope_base.into());
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        set("rope.scaling.type", "linear".into());
        set("rope.scaling.factor", factor.into());
    }
}
