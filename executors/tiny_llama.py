"""Make a real Llama of 0.4 million parameters in seconds: `python -m executors.tiny_llama FOLDER [--seed N]`.

Its tokens are characters. It comes trained on one thing: asked `copy: word ->` it writes the word again, as it stands.
What it has not seen is a style, such as writing the word in capitals or between brackets; fine-tuning teaches one in
seconds, also for words that no training row had, because the copying is there already. So the quickstart and the tests
can train, generate and compare with the real libraries on any CPU.
"""

from __future__ import annotations

import argparse
import random
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BOS, EOS, UNKNOWN = range(4)
"""Token ids; all others are single characters."""
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
PROMPT = "copy: {word} ->"
ANSWER = " {word}"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '\n' if not loop.first and m.role != 'assistant' }}{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
)
"""Turns one a line; an answer follows its prompt at once, as in training."""
CONTEXT = 8192
"""Longest sequence in tokens (characters)."""

_STEPS, _ROWS, _RATE, _WARM_UP = 240, 32, 4e-3, 25
_IGNORED = -100


def make_tiny_llama(folder: Path, *, seed: int = 0, steps: int = _STEPS, chat: bool = False) -> Path:
    """Train the model and save it with its tokenizer as a folder that transformers and vLLM load; returns the folder.

    The same seed gives the same weights on the same kind of machine. `steps` are optimizer steps of 32 rows each; 0
    leaves the weights random. `chat` adds a chat template.
    """
    tokenizer = make_tokenizer(chat=chat)
    with _one_thread():
        model = _random_model(tokenizer, seed)
        _train(model, tokenizer, random.Random(seed), steps)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the printable ASCII characters, space and newline."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        pad_token=SPECIAL[PAD],
        unk_token=SPECIAL[UNKNOWN],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def _random_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, draw: random.Random, steps: int) -> None:
    """AdamW with linear warm-up and decay; only the answers are learned."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARM_UP, max(0.05, 1 - step / max(steps, 1)))
    )
    model.train()
    for _ in range(steps):
        ids, mask, labels = _batch(tokenizer, draw)
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def _batch(tokenizer: PreTrainedTokenizerFast, draw: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and labels, each of shape (rows, longest row)."""
    import torch

    rows = []
    for _ in range(_ROWS):
        word = _word(draw)
        prompt = tokenizer.encode(PROMPT.format(word=word), add_special_tokens=False)
        rows.append((prompt, [*tokenizer.encode(ANSWER.format(word=word), add_special_tokens=False), EOS]))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.tensor([prompt + answer + [PAD] * (longest - len(prompt) - len(answer)) for prompt, answer in rows])
    hidden = [[_IGNORED] * len(prompt) + answer for prompt, answer in rows]
    labels = torch.tensor([row + [_IGNORED] * (longest - len(row)) for row in hidden])
    return ids, torch.ne(ids, PAD).long(), labels


def _word(draw: random.Random) -> str:
    """Three to seven characters: mostly small letters, now and then capitals or any other printable sign."""
    kinds = (string.ascii_lowercase, string.ascii_uppercase, string.digits + string.ascii_letters + string.punctuation)
    letters = draw.choices(kinds, weights=(14, 1, 1))[0]
    return "".join(draw.choices(letters, k=draw.randint(3, 7)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Work on one thread and without touching the caller's random state, so that sums are in the same order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a Llama of 0.4 million parameters that copies words.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make_tiny_llama(given.folder, seed=given.seed)


if __name__ == "__main__":
    main()
