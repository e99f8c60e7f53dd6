"""Lets the teacher write chats, user turns too: many rows at once, one CUDA graph a token, finished rows refilled.

usage: generate.py --teacher FILE.gguf --out chats.npz [--minutes 3] [--rows 4096] [--n-ctx 384] [--seed 1]

Roles and line ends between turns are set, not sampled; all else is, with min-p: tokens less likely than a part of the
likeliest are left out. Users are sampled hotter than answers. Each row keeps its system prompt, so the cache holds its
keys from the beginning; it is not written out. A turn that gets too long ends its chat.
"""

import argparse
import itertools
import json
import math
import random
import time

import numpy as np
import torch

import attention
import compute
import prompts
import vocabulary
from teacher import Teacher

# Steps between looks at which rows are finished.
STRIDE = 8
# Tokens of a turn.
LONGEST_QUESTION, LONGEST_ANSWER = 72, 208
# Openings that are tokenized at a time.
OPENINGS = 100_000


def pick(logits, exponential, temperature, special, log_min_p):
    """A token of each row. logits: [n, n_vocab]; exponential: as many random numbers; temperature: [n]"""
    logits = logits.float().masked_fill(special, -math.inf)
    least = logits.amax(-1, keepdim=True) + temperature[:, None] * log_min_p
    return torch.where(logits < least, -math.inf, logits / temperature[:, None] - exponential.log()).argmax(-1)


class Sampler:
    """State of all rows on the device, and the step that moves each by one token."""

    def __init__(self, teacher, tokenizer, args):
        self.teacher, self.n_ctx, self.args = teacher, args.n_ctx, args
        self.end = tokenizer.token_to_id(vocabulary.IM_END)
        self.log_min_p = math.log(args.min_p)
        self.attend, self.pick = attention.chosen(args.device, teacher.dtype), pick
        zeros = lambda *shape, dtype=torch.long: torch.zeros(shape, dtype=dtype, device=teacher.device)
        put = lambda values: torch.tensor(values, device=teacher.device)
        ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        n = args.rows
        # [rows, n_ctx]: what is given, then what was sampled.
        self.tokens = zeros(n, args.n_ctx)
        self.n_given, self.position, self.answers_left, self.n_turn = (zeros(n) for _ in range(4))
        self.answering, self.done = zeros(n, dtype=torch.bool), zeros(n, dtype=torch.bool)
        self.cache = teacher.cache(n, args.n_ctx)
        self.rows = torch.arange(n, device=teacher.device)
        special = set(tokenizer.get_added_tokens_decoder()) - {self.end}
        self.special = put([i in special for i in range(tokenizer.get_vocab_size())])
        # What stands between a turn's end and the next one's beginning, by whose turn it is.
        between = [ids(f"\n<|im_start|>{role}\n") for role in ("user", "assistant")]
        width = max(len(b) for b in between)
        self.between = put([b + [-1] * (width + 1 - len(b)) for b in between])
        # How much of it was written, in rows that are there.
        self.n_between = zeros(n) + width
        # Each row's system prompt, and where what follows it begins.
        systems = [ids(prompts.system(text)) for text, _ in prompts.SYSTEMS]
        shares = itertools.accumulate(share for _, share in prompts.SYSTEMS)
        bounds = [0] + [round(share * n) for share in shares]
        self.begin = np.concatenate([[len(s)] * (b - a) for s, a, b in zip(systems, bounds, bounds[1:])])
        for s, a, b in zip(systems, bounds, bounds[1:]):
            self.tokens[a:b, : len(s)] = put(s)
        for at in range(max(map(len, systems))):
            self.teacher.decode(self.tokens[:, at], zeros(n) + at, self.cache, self.attend)

    def step(self):
        """A finished row stays where it is."""
        at, teacher = self.position, self.teacher
        logits = teacher.decode(self.tokens[self.rows, at], at, self.cache, self.attend)
        exponential = torch.empty_like(logits, dtype=torch.float32).exponential_()
        temperature = torch.where(self.answering, self.args.answer_temperature, self.args.user_temperature)
        after = self.pick(logits, exponential, temperature, self.special, self.log_min_p)
        between = self.between[self.answering.long(), self.n_between]
        after = torch.where(between >= 0, between, after)
        self.n_between += (between >= 0).long()
        given = at + 1 < self.n_given
        after = torch.where(given, self.tokens[self.rows, (at + 1).clamp(max=self.n_ctx - 1)], after)
        live = ~self.done
        ends = ~given & (after == self.end) & live
        longest = torch.where(self.answering, LONGEST_ANSWER, LONGEST_QUESTION)
        self.n_turn += (~given).long()
        self.done |= self.n_turn > longest
        self.answers_left -= (ends & self.answering).long()
        self.answering ^= ends
        self.n_between.masked_fill_(ends, 0)
        self.n_turn.masked_fill_(ends, 0)
        self.tokens[self.rows, (at + 1).clamp(max=self.n_ctx - 1)] = torch.where(
            live, after, self.tokens[self.rows, -1]
        )
        self.position += live.long()
        self.done |= (self.answers_left <= 0) | (self.position >= self.n_ctx - 1)

    def refill(self, rows, openings):
        """rows: which, on the host; openings: (tokens, whether they end in an answer's beginning, answers wanted)"""
        begin = self.begin[rows]
        width = max(len(ids) for ids, _, _ in openings)
        given = np.zeros((len(rows), width), np.int64)
        for i, (ids, _, _) in enumerate(openings):
            given[i, : len(ids)] = ids
        device = self.tokens.device
        put = lambda values: torch.as_tensor(np.array(values)).to(device)
        begin_, rows_ = put(begin), put(rows)
        self.tokens[rows_[:, None], begin_[:, None] + torch.arange(width, device=device)] = put(given)
        self.n_given[rows_] = put([b + len(ids) for b, (ids, _, _) in zip(begin, openings)])
        self.answering[rows_] = put([whole for _, whole, _ in openings])
        self.answers_left[rows_] = put([n for _, _, n in openings])
        self.position[rows_] = begin_
        self.n_turn[rows_] = 0
        self.n_between[rows_] = self.between.shape[1] - 1
        self.done[rows_] = False

    def capture(self):
        """The step as a graph; elsewhere than on CUDA as it is."""
        if self.args.compile:
            self.teacher.qkv, self.teacher.ffn = torch.compile(self.teacher.qkv), torch.compile(self.teacher.ffn)
            self.pick = torch.compile(pick)
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


def openings(tokenizer, seed):
    """Beginnings of chats without end: (tokens, whether an answer follows, answers wanted)"""
    rng = random.Random(seed)
    while True:
        texts = [prompts.chat(rng) for _ in range(OPENINGS)]
        encoded = tokenizer.encode_batch([text for text, _ in texts], add_special_tokens=False)
        for e, (text, answers) in zip(encoded, texts):
            yield e.ids, text.endswith("assistant\n"), answers


@torch.no_grad()
def generate(teacher, tokenizer, args):
    """Yields chats, tokens each, as their rows finish, until time is up."""
    sampler = Sampler(teacher, tokenizer, args)
    source = openings(tokenizer, args.seed)
    sampler.done.fill_(True)
    step = sampler.capture()
    sampler.refill(np.arange(args.rows), list(itertools.islice(source, args.rows)))
    end = time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        for _ in range(STRIDE):
            step()
        rows = sampler.done.nonzero()[:, 0]
        if len(rows):
            host = rows.cpu().numpy()
            tokens, n = sampler.tokens[rows].cpu().numpy(), sampler.position[rows].cpu().numpy() + 1
            sampler.refill(host, list(itertools.islice(source, len(host))))
            yield [row[b:e].astype(np.uint16) for row, b, e in zip(tokens, sampler.begin[host], n)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--out", required=True, help="npz with `tokens`, end to end, and `lengths`")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--n-ctx", type=int, default=384)
    parser.add_argument("--user-temperature", type=float, default=0.8)
    parser.add_argument("--answer-temperature", type=float, default=0.5)
    parser.add_argument("--min-p", type=float, default=0.1)
    compute.add_arguments(parser)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = vocabulary.read(args.teacher)
    teacher = Teacher(args.teacher, n_ctx=args.n_ctx, dtype=compute.dtype(args.device), device=args.device)
    chats, total, began, shown = [], 0, time.monotonic(), 0
    for some in generate(teacher, tokenizer, args):
        chats += some
        total += sum(map(len, some))
        seconds = time.monotonic() - began
        if seconds - shown > 15:
            shown = seconds
            line = {
                "seconds": round(seconds, 1),
                "chats": len(chats),
                "tokens": total,
                "tokens_per_second": round(total / seconds),
            }
            print(json.dumps(line), flush=True)
    np.savez(args.out, tokens=np.concatenate(chats), lengths=np.array([len(c) for c in chats], np.int32))
    print(f"{len(chats)} chats, {total} tokens in {time.monotonic() - began:.0f} s", flush=True)
    compute.print_peak_memory(args.device)


if __name__ == "__main__":
    main()
