"""Lets the teacher write chats, user turns too: many rows at once, one CUDA graph a token, finished rows refilled.

usage: generate.py --teacher FILE.gguf --out chats.npz [--minutes 8] [--rows 3072] [--n-ctx 384] [--seed 1]

Roles and line ends between turns are set, not sampled; all else is, with min-p: tokens less likely than a part of the likeliest are left out. Users are sampled hotter than answers.
"""

import argparse
import json
import time

import numpy as np
import torch

import prompts
import vocabulary
from teacher import Teacher

# Steps between looks at which rows are finished.
STRIDE = 16


class Sampler:
    """State of all rows on the device, and the step that moves each by one token."""

    def __init__(self, teacher, tokenizer, args):
        self.teacher, self.n_ctx = teacher, args.n_ctx
        self.end = tokenizer.token_to_id(vocabulary.IM_END)
        self.temperature = (args.user_temperature, args.answer_temperature)
        self.min_p = args.min_p
        zeros = lambda *shape, dtype=torch.long: torch.zeros(shape, dtype=dtype, device=teacher.device)
        n = args.rows
        # [rows, n_ctx]: what is given, then what was sampled.
        self.tokens = zeros(n, args.n_ctx)
        self.n_given, self.position, self.answers_left = (zeros(n) for _ in range(3))
        self.answering, self.done = zeros(n, dtype=torch.bool), zeros(n, dtype=torch.bool)
        self.cache = teacher.cache(n, args.n_ctx)
        self.rows = torch.arange(n, device=teacher.device)
        special = [i for i in tokenizer.get_added_tokens_decoder() if i != self.end]
        self.special = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool)
        self.special[special] = True
        self.special = self.special.to(teacher.device)
        # What stands between a turn's end and the next one's beginning, by whose turn it is.
        between = [tokenizer.encode(f"\n<|im_start|>{role}\n", add_special_tokens=False).ids for role in ("user", "assistant")]
        width = max(len(ids) for ids in between)
        self.between = torch.tensor([ids + [-1] * (width + 1 - len(ids)) for ids in between], device=teacher.device)
        # How much of it was written, in rows that are there.
        self.n_between = zeros(n) + width

    def sample(self, logits):
        hot, cold = self.temperature
        temperature = torch.where(self.answering, cold, hot)[:, None]
        logits = logits.float().masked_fill(self.special, -torch.inf)
        least = logits.amax(-1, keepdim=True) + temperature * np.log(self.min_p)
        noise = -torch.empty_like(logits).exponential_().log()
        return torch.where(logits < least, -torch.inf, logits / temperature + noise).argmax(-1)

    def step(self):
        """A finished row stays where it is."""
        at = self.position
        token = self.tokens[self.rows, at]
        after = self.sample(self.teacher.decode(token, at, self.cache))
        between = self.between[self.answering.long(), self.n_between]
        after = torch.where(between >= 0, between, after)
        self.n_between += (between >= 0).long()
        given = at + 1 < self.n_given
        after = torch.where(given, self.tokens[self.rows, (at + 1).clamp(max=self.n_ctx - 1)], after)
        ends = ~given & (after == self.end) & ~self.done
        self.answers_left -= (ends & self.answering).long()
        self.answering ^= ends
        self.n_between.masked_fill_(ends, 0)
        live = ~self.done
        self.tokens[self.rows, (at + 1).clamp(max=self.n_ctx - 1)] = torch.where(live, after, self.tokens[self.rows, -1])
        self.position += live.long()
        self.done |= (self.answers_left <= 0) | (self.position >= self.n_ctx - 1)

    def refill(self, rows, texts):
        """rows: which; texts: (tokens, whether they end in an answer's beginning, answers wanted)"""
        width = max(len(ids) for ids, _, _ in texts)
        given = np.zeros((len(rows), width), np.int64)
        for i, (ids, _, _) in enumerate(texts):
            given[i, : len(ids)] = ids
        device = self.tokens.device
        put = lambda values: torch.as_tensor(np.array(values)).to(device)
        self.tokens[rows, :width] = put(given)
        self.n_given[rows] = put([len(ids) for ids, _, _ in texts])
        self.answering[rows] = put([whole for _, whole, _ in texts])
        self.answers_left[rows] = put([n for _, _, n in texts])
        self.position[rows] = 0
        self.n_between[rows] = self.between.shape[1] - 1
        self.done[rows] = False

    def capture(self):
        """The step as a graph; elsewhere than on CUDA as it is."""
        if self.tokens.device.type != "cuda":
            return self.step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


@torch.no_grad()
def generate(teacher, tokenizer, args):
    """Yields (tokens, how many) of finished rows until time is up."""
    sampler = Sampler(teacher, tokenizer, args)
    source = prompts.chats(args.seed)

    def take(n):
        texts = [next(source) for _ in range(n)]
        encoded = tokenizer.encode_batch([text for text, _ in texts], add_special_tokens=False)
        return [(e.ids, text.endswith("assistant\n"), answers) for e, (text, answers) in zip(encoded, texts)]

    sampler.done.fill_(True)
    step = sampler.capture()
    sampler.refill(sampler.rows, take(args.rows))
    end = time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        for _ in range(STRIDE):
            step()
        rows = sampler.done.nonzero()[:, 0]
        if len(rows):
            yield sampler.tokens[rows].to(torch.uint16).cpu().numpy(), sampler.position[rows].cpu().numpy() + 1
            sampler.refill(rows, take(len(rows)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--out", required=True, help="npz with `tokens`, end to end, and `lengths`")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--rows", type=int, default=3072)
    parser.add_argument("--n-ctx", type=int, default=384)
    parser.add_argument("--user-temperature", type=float, default=0.8)
    parser.add_argument("--answer-temperature", type=float, default=0.5)
    parser.add_argument("--min-p", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = vocabulary.read(args.teacher)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    teacher = Teacher(args.teacher, n_ctx=args.n_ctx, dtype=dtype, device=args.device)
    pieces, lengths, began, shown = [], [], time.monotonic(), 0
    for tokens, n in generate(teacher, tokenizer, args):
        pieces += [row[:k].copy() for row, k in zip(tokens, n)]
        lengths += n.tolist()
        seconds = time.monotonic() - began
        if seconds - shown > 20:
            shown = seconds
            total = sum(lengths)
            print(json.dumps({"seconds": round(seconds, 1), "chats": len(lengths), "tokens": total, "tokens_per_second": round(total / seconds)}), flush=True)
    np.savez(args.out, tokens=np.concatenate(pieces), lengths=np.array(lengths, np.int32))
    print(f"{len(lengths)} chats, {sum(lengths)} tokens in {time.monotonic() - began:.0f} s", flush=True)
    if args.device == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
