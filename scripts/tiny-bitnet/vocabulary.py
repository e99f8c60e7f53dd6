"""The student's vocabulary: the first `n_vocab` ids of the teacher's.

SmolLM2's ids are 17 special tokens, 256 bytes, then one token a merge, in the order of the merges. Cutting ids and
merges at the same place leaves a byte-level BPE whose tokens the teacher knows under the same ids: text in the
student's tokens can be given to the teacher, and its logits belong to the student's tokens, one to one.
"""

import json

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL = 3


def read(path, n_vocab=None):
    """A `tokenizers.Tokenizer` of the first `n_vocab` ids of a GGUF file's vocabulary, by default of all."""
    reader = gguf.GGUFReader(path)

    def key(name):
        return reader.get_field(f"tokenizer.ggml.{name}").contents()

    tokens, types = key("tokens")[:n_vocab], key("token_type")[:n_vocab]
    n_vocab = len(tokens)
    vocab = {token: i for i, token in enumerate(tokens)}
    special = [token for token, kind in zip(tokens, types) if kind == CONTROL]
    merges = []
    for merge in key("merges"):
        a, b = merge.split(" ")
        if a + b not in vocab:
            break
        merges.append((a, b))
    n_plain = sum(len(token) == 1 for token in tokens)
    if len(merges) + len(special) + n_plain != n_vocab:
        raise SystemExit("error: the vocabulary's ids are not in the order of its merges")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    # What libllama calls `smollm`.
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def pieces(teachers, students):
    """The student's tokens for each of the teacher's: the first merges are the same, the later ones are undone."""
    n_vocab = students.get_vocab_size()
    model = Tokenizer(students.model)

    def of(i):
        if i < n_vocab:
            return [i]
        return [token.id for token in model.model.tokenize(teachers.id_to_token(i))]

    return [of(i) for i in range(teachers.get_vocab_size())]


def save(tokenizer, folder):
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, as a Hugging Face folder has them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": IM_START,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "add_eos_token": False,
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
