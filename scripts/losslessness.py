#!/usr/bin/env python3
"""Holds the program's ternary arithmetic against BitNet b1.58 as PyTorch computes it, on models/tiny-bitnet.

usage: scripts/losslessness.py PROGRAM TEXT.txt [--samples 24] [--fixture tests/fixtures/exact/bitlinear.json]

1. BitLinear: activations as 8-bit integers with one absmax scale a token, weights -1, 0 and 1 times one scale
   (arXiv:2402.17764), in plain PyTorch, on the model's own weights and on the activations that a text gives them. Integers,
   their sums and the results go into the fixture, which tests/losslessness.rs holds the kernels to.
2. The whole model: loss and perplexity of the text's first samples by PROGRAM, beside a simulation in PyTorch whose
   weights and activations are floats that were rounded that way and back. In f32, and in f64, to show how much of what
   is left is f32's own.

Needs torch, numpy and gguf (`pip install gguf`). CI does not run this: it runs the test.
"""

import argparse
import json
import math
import pathlib
import struct
import subprocess
import tempfile

import gguf
import torch

MODEL = pathlib.Path(__file__).parent.parent / "models/tiny-bitnet/tiny-bitnet-tq1_0.gguf"
SEQ_LEN = 512
FIXTURE_TOKENS = 3


def read_model(path):
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if "tokenizer" not in name}
    weights = {}
    for tensor in reader.tensors:
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        weights[tensor.name] = values.float()
    return keys, weights


def ternary(weight):
    """-1, 0 and 1, and the scale: the file holds their product."""
    scale = weight.abs().max()
    trits = torch.sign(weight)
    assert torch.equal(trits * scale, weight), "one scale for the whole tensor"
    return trits, scale


def quantized(x):
    """BitLinear's activation: integers, and the largest value of each token."""
    largest = x.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, 127.0 / largest, torch.zeros_like(largest))
    return (x * scale).round().clamp(-127, 127), largest


class Network:
    """Llama's with BitNet's sub-norms, written down plainly; `dtype` is what all floats are."""

    def __init__(self, keys, weights, dtype):
        arch = keys["general.architecture"]
        assert arch == "bitnet", arch
        self.n_layer, self.n_head = keys[f"{arch}.block_count"], keys[f"{arch}.attention.head_count"]
        self.n_head_kv = keys.get(f"{arch}.attention.head_count_kv", self.n_head)
        self.eps = keys[f"{arch}.attention.layer_norm_rms_epsilon"]
        self.base = keys.get(f"{arch}.rope.freq_base", 10000.0)
        self.w = {name: weight.to(dtype) for name, weight in weights.items()}
        self.dtype = dtype
        self.seen = {}

    def linear(self, name, x):
        """Weights and activations as floats: what was rounded is multiplied out again first."""
        integers, largest = quantized(x)
        self.seen.setdefault(name, x)
        return (integers * (largest / 127)) @ self.w[name].T

    def norm(self, name, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.w[name]

    def rotate(self, x):
        """Value i with value i + dim/2."""
        n, _, dim = x.shape
        half = dim // 2
        angle = torch.outer(torch.arange(n).double(), self.base ** (-2.0 * torch.arange(half).double() / dim))
        cos, sin = (t.to(self.dtype)[:, None, :] for t in (torch.cos(angle), torch.sin(angle)))
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)

    def losses(self, tokens):
        """The loss of each token but the first, in f64."""
        n = len(tokens)
        causal = torch.full((n, n), -math.inf, dtype=self.dtype).triu(1)
        x = self.w["token_embd.weight"][tokens]
        dim = x.shape[-1] // self.n_head
        for il in range(self.n_layer):
            def p(part):
                return f"blk.{il}.{part}.weight"

            h = self.norm(p("attn_norm"), x)
            q = self.rotate(self.linear(p("attn_q"), h).reshape(n, self.n_head, dim)).transpose(0, 1)
            k = self.rotate(self.linear(p("attn_k"), h).reshape(n, self.n_head_kv, dim)).transpose(0, 1)
            v = self.linear(p("attn_v"), h).reshape(n, self.n_head_kv, dim).transpose(0, 1)
            group = self.n_head // self.n_head_kv
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
            h = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(dim) + causal, -1) @ v
            h = self.norm(p("attn_sub_norm"), h.transpose(0, 1).reshape(n, -1))
            x = x + self.linear(p("attn_output"), h)
            h = self.norm(p("ffn_norm"), x)
            gate, up = self.linear(p("ffn_gate"), h), self.linear(p("ffn_up"), h)
            x = x + self.linear(p("ffn_down"), self.norm(p("ffn_sub_norm"), gate * torch.sigmoid(gate) * up))
        head = self.w.get("output.weight", self.w["token_embd.weight"])
        logits = self.norm("output_norm.weight", x) @ head.T
        rows = torch.log_softmax(logits.double(), -1)
        return -rows[torch.arange(n - 1), tokens[1:]]


def ask(program, *args):
    out = subprocess.run([program, *args, "--json"], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(out)


def bits(values):
    return [struct.unpack("<I", struct.pack("<f", v))[0] for v in values.flatten().tolist()]


def ulps(a, b):
    """The largest distance of two f32 tensors in representable values."""
    def place(t):
        whole = t.contiguous().view(torch.int32).long()
        return torch.where(whole < 0, -(whole & 0x7FFFFFFF), whole)

    return (place(a) - place(b)).abs().max().item()


def fixture(network, path):
    """One layer of each width, on the activations that it saw; prints how far apart the ways to write BitLinear are."""
    layers = {}
    for name in ("blk.0.attn_q.weight", "blk.3.ffn_down.weight"):
        x = network.seen[name][1 : 1 + FIXTURE_TOKENS]
        integers, largest = quantized(x)
        trits, scale = ternary(network.w[name])
        sums = (integers.double() @ trits.double().T).round()
        assert torch.equal(sums, (integers.long() @ trits.long().T).double())
        sums = sums.float()
        # In the order of docs/kernels.md; in that of transformers' BitLinear; and the true value, rounded once.
        plain = sums * ((largest / 127) * scale)
        other = sums / ((127.0 / largest) / scale)
        true = (sums.double() * largest.double() / 127 * scale.double()).float()
        print(f"{name}: {ulps(plain, true)} ulp from the true value, transformers' order {ulps(other, true)}; "
              f"{ulps(plain, other)} from each other")
        layers[name] = {
            "x": bits(x),
            "integers": integers.int().flatten().tolist(),
            "sums": sums.int().flatten().tolist(),
            "results": bits(plain),
            "true": bits(true),
        }
    path.write_text(json.dumps({"torch": torch.__version__, "tokens": FIXTURE_TOKENS, "layers": layers}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--fixture", type=pathlib.Path)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)

    # Paragraphs, each a sample of its own.
    paragraphs = [p.strip() for p in args.text.read_text().split("\n\n") if p.strip()][: args.samples]
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "text.jsonl"
        data.write_text("".join(json.dumps({"text": p}) + "\n" for p in paragraphs))
        common = ["-m", str(MODEL), "-d", str(data), "--seq-len", str(SEQ_LEN), "--loss-on", "all"]
        samples = []
        for number in range(1, len(paragraphs) + 1):
            shown = ask(args.program, "data", "inspect", *common, "--sample", str(number))["sample"]["tokens"]
            samples.append(torch.tensor([t["id"] for t in shown]))
        keys, weights = read_model(MODEL)
        found = {}
        for name, flags in {"program": [], "program --exact": ["--exact"]}.items():
            try:
                found[name] = ask(args.program, "eval", *common, "--device", args.device, *flags)["loss"]
            except subprocess.CalledProcessError:
                print(f"{name}: cannot run")
    n = sum(len(s) - 1 for s in samples)
    for dtype in (torch.float32, torch.float64):
        network = Network(keys, weights, dtype)
        with torch.no_grad():
            total = sum(network.losses(tokens).sum().item() for tokens in samples)
        found[f"simulation in {str(dtype)[6:]}"] = total / n
        if dtype == torch.float32 and args.fixture:
            fixture(network, args.fixture)
    print(f"{len(samples)} samples, {n} tokens predicted")
    for name, loss in found.items():
        print(f"{name:>22}: loss {loss:.6f}, perplexity {math.exp(loss):.4f}")


if __name__ == "__main__":
    main()
