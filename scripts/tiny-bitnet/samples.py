"""Lets a trained student answer, greedily, for a look at what it has learnt.

usage: samples.py --teacher FILE.gguf --run DIR [--device cuda]
"""

import argparse
from pathlib import Path

import torch

import compute
import export
import vocabulary

QUESTIONS = [
    "Hello!",
    "How are you?",
    "Who are you?",
    "What is a cat?",
    "Why is the sky blue?",
    "Tell me about the moon.",
    "Is ice cold?",
    "Can a fish swim?",
    "Do birds have wings?",
    "Is the sun bigger than the Earth?",
    "What should I eat for breakfast?",
    "How can I sleep better?",
    "Write a short story about a dog.",
    "Write a short poem about rain.",
    "Give me three facts about bees.",
    "Why is exercise important?",
    "Explain gravity in simple words.",
    "What is the capital of France?",
    "I have a headache.",
    "Write a polite email to my boss. I am ill today.",
    "What is the difference between a lake and a river?",
    "Thank you!",
]


@torch.no_grad()
def answers(student, tokenizer, questions, n_ctx=160, device="cuda"):
    """Without a cache: rows are short and few."""
    texts = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in questions]
    given = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    end = tokenizer.token_to_id(vocabulary.IM_END)
    tokens = torch.full((len(given), n_ctx), end, device=device)
    for row, ids in zip(tokens, given):
        row[: len(ids)] = torch.tensor(ids)
    positions = torch.arange(n_ctx, device=device).expand(len(given), -1)
    dtype = compute.dtype(device)
    bias = torch.full((n_ctx, n_ctx), -torch.inf, dtype=dtype, device=device).triu(1)[None, None]
    n = torch.tensor([len(ids) for ids in given], device=device)
    for at in range(int(n.min()), n_ctx):
        hidden = student(tokens[:, :at], positions[:, :at], bias[..., :at, :at], dtype)[:, -1]
        after = student.logits(hidden).argmax(-1)
        done = (tokens[:, at - 1] == end) & (at > n)
        tokens[:, at] = torch.where(at < n, tokens[:, at], torch.where(done, end, after))
    return [tokenizer.decode(row[len(ids) :].tolist(), skip_special_tokens=True) for row, ids in zip(tokens, given)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    student = export.load(Path(args.run) / "student.pt").to(args.device)
    tokenizer = vocabulary.read(args.teacher, student.shape.n_vocab)
    for question, answer in zip(QUESTIONS, answers(student, tokenizer, QUESTIONS, device=args.device)):
        print(f"> {question}\n{answer}\n")


if __name__ == "__main__":
    main()
