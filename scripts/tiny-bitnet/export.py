"""Writes the trained student as a Hugging Face folder that `qvac-ft convert` takes, ternary values packed.

usage: export.py --teacher FILE.gguf --run DIR --out HF_DIR

The class is transformers' BitNetForCausalLM with SiLU. Each scale is one that f16 holds (see `student.ternary`), so the
GGUF file has the very numbers that training used; the embedding is rounded to f16 here, and to Q6_K by `convert`.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import student as bitnet
import vocabulary

LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}


def packed(values):
    """Four rows in one byte, two bits each, as transformers' `integrations/bitnet.py` unpacks them."""
    quarters = (values + 1).to(torch.uint8).chunk(4)
    return sum(q << (2 * i) for i, q in enumerate(quarters)).to(torch.uint8)


def tensors(student):
    out = {"model.embed_tokens.weight": student.embedding.half(), "model.norm.weight": student.output_norm.weight}
    for i, block in enumerate(student.blocks):
        for ours, theirs in LINEARS.items():
            values, scale = bitnet.ternary(getattr(block, ours).weight)
            out[f"model.layers.{i}.{theirs}.weight"] = packed(values)
            out[f"model.layers.{i}.{theirs}.weight_scale"] = scale.reshape(1)
        for ours, theirs in NORMS.items():
            out[f"model.layers.{i}.{theirs}.weight"] = getattr(block, ours).weight
    return {name: t.detach().cpu().contiguous() for name, t in out.items()}


def config(shape, tokenizer):
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "silu",
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head,
        "max_position_embeddings": shape.n_ctx,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_base,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.token_to_id(vocabulary.IM_START),
        "eos_token_id": tokenizer.token_to_id(vocabulary.IM_END),
        "pad_token_id": tokenizer.token_to_id(vocabulary.END_OF_TEXT),
        "torch_dtype": "float16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
        "_name_or_path": "tiny-bitnet",
    }


def load(path):
    state = torch.load(path, map_location="cpu", weights_only=False)
    student = bitnet.Student(bitnet.Shape(**state["shape"]))
    # Compiled blocks keep their names.
    student.load_state_dict(state["model"])
    return student


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    student = load(Path(args.run) / "student.pt")
    tokenizer = vocabulary.read(args.teacher, student.shape.n_vocab)
    save_file(tensors(student), str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config(student.shape, tokenizer), indent=2) + "\n")
    vocabulary.save(tokenizer, out)


if __name__ == "__main__":
    main()
