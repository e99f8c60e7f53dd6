"""Filters chats and packs them into rows for training.

usage: prepare.py --teacher FILE.gguf --chats chats.npz --out rows.npz [--n-vocab 16384] [--n-ctx 512]

What goes: chats without an answer that ends, other scripts than Latin, code, runs of repetition, parrots, answers that
speak of the system prompt, repeated chats. System prompts are taken away, so that the student needs none.
What comes: greetings, and drills in copying a sentence.
Rows hold whole chats; `chat` numbers those of a row, 255 where nothing stands. `shared` says where a token is one of
the teacher's as well, not a piece of one: only there are the teacher's logits about the same choice.
"""

import argparse
import bisect
import collections
import itertools
import json
import multiprocessing
import random
import re
import time

import numpy as np

import greetings
import vocabulary

USER_WORDS, ANSWER_WORDS = 60, 220
# Chats that begin with the same user's turn.
SAME_QUESTION = 60
# How often each greeting is told.
GREETING_COPIES = 60
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n?", re.S)
# ASCII, and what English writes besides.
CHARACTERS = re.compile("[\n -~éèêëáàâäãåíìîïóòôöõúùûüñçß’‘“”–—…°£€²³×÷]*")
UNWANTED = re.compile(
    r"```|[{}<>\\|]|https?:|www\.|\b(def|import|SELECT|Hugging Face|SmolLM|Python|SQL|COVID)\b|as an AI|\bAI assistant\b"
    r"|the (text|user|original|revised|given|above|following (text|passage|sentence))\b|\bI made\b|rephrase|proofread",
    re.I,
)
SENTENCE = re.compile(r"[A-Z][^.!?\n]+[.!?](?=\s|$)")
COPY = ["Repeat this sentence: {}", "Say this again: {}", "Write this sentence once more: {}", "Copy this: {}"]
# Chats out of which such a drill is made as well.
DRILLS = 0.04
WORD = re.compile(r"[\w'’]+")


def repeats(words):
    """Whether four words in a row come three times, or ten in a row twice."""
    for n, most in ((4, 2), (10, 1)):
        counts = collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        if counts and max(counts.values()) > most:
            return True
    return False


def verdict(turns):
    """Why a chat goes, or None. turns: (role, text), a user's and an answer by turns"""
    seen = set()
    for i in range(0, len(turns) - 1, 2):
        (_, question), (_, answer) = turns[i : i + 2]
        asked, said = WORD.findall(question.lower()), WORD.findall(answer.lower())
        if not 1 <= len(asked) <= USER_WORDS or not 3 <= len(said) <= ANSWER_WORDS:
            return "length"
        if not CHARACTERS.fullmatch(question) or not CHARACTERS.fullmatch(answer):
            return "characters"
        if UNWANTED.search(question) or UNWANTED.search(answer):
            return "unwanted"
        if sum(c.isdigit() for c in answer) > 0.05 * len(answer) + 3:
            return "digits"
        if repeats(said) or repeats(asked):
            return "repetition"
        if " ".join(said) in " ".join(asked) or tuple(said) in seen or tuple(asked) in seen:
            return "parrot"
        if answer.rstrip()[-1:] not in set(".!?\"'”)") or answer != answer.strip() or question != question.strip():
            return "end"
        seen |= {tuple(said), tuple(asked)}
    return None


def cut(text):
    """The turns up to the last answer that ends."""
    turns = TURN.findall(text)
    turns = turns[: len(turns) // 2 * 2]
    return turns if [role for role, _ in turns] == ["user", "assistant"] * (len(turns) // 2) else []


def written(turns):
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def judged(text):
    turns = cut(text)
    return turns, verdict(turns) if turns else "no answer"


def filtered(texts, counts, pool):
    seen, same = set(), collections.Counter()
    for turns, why in pool.imap(judged, texts, 1000):
        if not why:
            chat, first = written(turns), turns[0][1]
            same[first] += 1
            if chat in seen:
                why = "seen"
            elif same[first] > SAME_QUESTION:
                why = "same question"
            else:
                seen.add(chat)
                yield chat
        counts[why or "kept"] += 1


def drill(chat, rng):
    """A chat in which a sentence is to be copied, or None: what rewriting begins with."""
    sentences = [s for s in SENTENCE.findall(TURN.findall(chat)[1][1]) if 4 <= len(s.split()) <= 25]
    if not sentences:
        return None
    sentence = rng.choice(sentences)
    return written([("user", rng.choice(COPY).format(sentence)), ("assistant", sentence)])


def pack(lengths, n_ctx, rng):
    """Which chats share a row: the longest that fits, again and again."""
    by_length = collections.defaultdict(list)
    for i, n in enumerate(lengths):
        by_length[n].append(i)
    for which in by_length.values():
        rng.shuffle(which)
    open_lengths, rows = sorted(by_length), []
    while open_lengths:
        row, room = [], n_ctx
        while at := bisect.bisect_right(open_lengths, room):
            n = open_lengths[at - 1]
            row.append(by_length[n].pop())
            room -= n
            if not by_length[n]:
                open_lengths.pop(at - 1)
        rows.append(row)
    rng.shuffle(rows)
    return rows


def in_pieces(ids, lengths, pieces):
    """The student's tokens of chats end to end, which of them are the teacher's too, and the chats' new lengths."""
    n_pieces = np.array([len(p) for p in pieces])
    flat, first = np.concatenate(pieces), np.cumsum(n_pieces) - n_pieces
    n = n_pieces[ids]
    within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    tokens, shared = flat[np.repeat(first[ids], n) + within], np.repeat(n == 1, n)
    return tokens, shared, np.add.reduceat(n, np.cumsum(lengths) - lengths)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--chats", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--sample", help="JSON lines with some of the chats")
    parser.add_argument("--n-vocab", type=int, default=16384)
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began, rng, counts = time.monotonic(), random.Random(args.seed), collections.Counter()
    teachers, students = vocabulary.read(args.teacher), vocabulary.read(args.teacher, args.n_vocab)
    pieces = vocabulary.pieces(teachers, students)
    data = np.load(args.chats)
    ends = np.cumsum(data["lengths"])
    tokens = data["tokens"]
    sequences = [tokens[end - n : end].tolist() for end, n in zip(ends, data["lengths"])]
    with multiprocessing.Pool() as pool:
        chats = list(filtered(teachers.decode_batch(sequences, skip_special_tokens=False), counts, pool))
    n_written = len(chats)
    drills = [drill(chat, rng) for chat in rng.sample(chats, int(DRILLS * n_written))]
    chats += filter(None, drills)
    for question, answer in greetings.chats():
        chats += [written([("user", question), ("assistant", answer)])] * GREETING_COPIES
    encoded = teachers.encode_batch(chats, add_special_tokens=False)
    lengths = np.array([len(e) for e in encoded])
    ids = np.fromiter(itertools.chain.from_iterable(e.ids for e in encoded), np.int64, lengths.sum())
    tokens, shared, lengths = in_pieces(ids, lengths, pieces)
    begins = np.cumsum(lengths) - lengths
    kept = np.flatnonzero(lengths <= args.n_ctx)
    rows = pack(lengths[kept].tolist(), args.n_ctx, rng)
    shape = (len(rows), args.n_ctx)
    out = {"tokens": np.zeros(shape, np.uint16), "chat": np.full(shape, 255, np.uint8), "shared": np.zeros(shape, bool)}
    for r, row in enumerate(rows):
        at = 0
        for k, i in enumerate(kept[row]):
            here, there = slice(at, at + lengths[i]), slice(begins[i], begins[i] + lengths[i])
            out["tokens"][r, here], out["chat"][r, here], out["shared"][r, here] = tokens[there], k, shared[there]
            at += lengths[i]
    np.savez(args.out, **out)
    if args.sample:
        with open(args.sample, "w") as file:
            for chat in rng.sample(chats[:n_written], min(400, n_written)):
                messages = [{"role": role, "content": text} for role, text in TURN.findall(chat)]
                file.write(json.dumps({"messages": messages}) + "\n")
    used = out["chat"] != 255
    print(
        json.dumps(
            {
                "chats": dict(counts.most_common()),
                "rows": len(rows),
                "tokens": int(used.sum()),
                "full": round(float(used.mean()), 4),
                "shared": round(float(out["shared"][used].mean()), 4),
                "seconds": round(time.monotonic() - began, 1),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
