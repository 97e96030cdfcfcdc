"""Decoding that follows a JSON schema: only tokens that keep the text valid, and an end before the limit.

The grammar is xgrammar's. A small model may fill a string up to its limit and leave half an object behind; so near the
limit only tokens that end what is open are left to choose from, and every text is a whole value of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import xgrammar
from transformers import LogitsProcessor

from executors.base import ExecutorError
from mloc_dagster.spec.base import Json

_CLOSING = ('"', "}", "]", ",", ":", "0", "1")
"""Texts of tokens that end a value soonest, in the order in which they are tried."""
_LONGEST = 4096
"""Tokens of the shortest value that a schema may have; a schema that needs more has none that ends."""
_MARGIN = 2


@dataclass(frozen=True)
class Grammar:
    """A compiled schema, and the tokens of the shortest value (with its end token)."""

    compiled: xgrammar.CompiledGrammar
    shortest: int


class Grammars:
    """Compiles schemas for one tokenizer; `vocabulary` is the width of the model's logits."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=list(ends))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self._closing = _closing_tokens(tokenizer)
        self._vocabulary = vocabulary
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def compile(self, schema: Json) -> Grammar:
        """Return the grammar of a JSON schema; raises ExecutorError for one that cannot be followed."""
        return self._compiled(json.dumps(schema, sort_keys=False))

    def mask(self, grammars: Sequence[Grammar | None], limits: Sequence[int], width: int) -> LogitsProcessor | None:
        """A processor for one batch whose prompts are `width` tokens wide; None when no row follows a schema."""
        if not any(grammars):
            return None
        return _SchemaMask(grammars, limits, width, self._closing, self._vocabulary)

    def _compile(self, schema: str) -> Grammar:
        try:
            compiled = self._compiler.compile_json_schema(schema, any_whitespace=False)
            matcher = xgrammar.GrammarMatcher(compiled)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[-300:]
            raise ExecutorError(f"The JSON schema cannot be followed: {reason}", "Write it simpler.") from error
        shortest = _tokens_to_close(matcher, self._closing, self._vocabulary)
        if shortest is None:
            raise ExecutorError("The JSON schema has no value that ends.", "Give its recursion an end.")
        return Grammar(compiled, shortest)


class _SchemaMask(LogitsProcessor):
    """Rules out what the grammar of a row does not allow next."""

    def __init__(
        self, grammars: Sequence[Grammar | None], limits: Sequence[int], width: int, closing: Sequence[int], size: int
    ) -> None:
        self._grammars = grammars
        self._matchers = [xgrammar.GrammarMatcher(one.compiled) if one else None for one in grammars]
        self._limits = limits
        self._width = width
        self._closing = closing
        self._size = size
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Set the scores of tokens that are not allowed to -inf, given ids of shape (rows, width + generated)."""
        allowed = torch.ones(scores.shape, dtype=torch.bool)
        for row, matcher in enumerate(self._matchers):
            if matcher is None or matcher.is_terminated():
                continue
            if self._step:
                matcher.accept_token(int(input_ids[row, -1]))
            if not matcher.is_terminated():
                allowed[row] = self._next(row, matcher)
        self._step += 1
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _next(self, row: int, matcher: xgrammar.GrammarMatcher) -> torch.Tensor:
        allowed = _allowed(matcher, self._size)
        grammar, left = self._grammars[row], self._limits[row] - self._step
        assert grammar is not None
        if left > 2 * grammar.shortest + 64:
            return allowed
        needed = _tokens_to_close(matcher, self._closing, self._size)
        if needed is None or needed + _MARGIN < left:
            return allowed
        only = torch.zeros_like(allowed)
        only[_soonest(allowed, self._closing)] = True
        return only


def _closing_tokens(tokenizer: Any) -> list[int]:
    found = [tokenizer.encode(text, add_special_tokens=False) for text in _CLOSING]
    return [tokens[0] for tokens in found if len(tokens) == 1]


def _allowed(matcher: xgrammar.GrammarMatcher, size: int) -> torch.Tensor:
    """Which tokens may come next, one flag for each."""
    words = xgrammar.allocate_token_bitmask(1, size)
    matcher.fill_next_token_bitmask(words, 0)
    bits = (words[0].unsqueeze(1) >> torch.arange(32, dtype=torch.int32)) & 1
    return bits.flatten()[:size].bool()


def _soonest(allowed: torch.Tensor, closing: Sequence[int]) -> int:
    return next((token for token in closing if allowed[token]), int(allowed.int().argmax()))


def _tokens_to_close(matcher: xgrammar.GrammarMatcher, closing: Sequence[int], size: int) -> int | None:
    """Tokens from here to the end when each step takes the one that ends soonest; None when it does not end."""
    trial = matcher.fork()
    for count in range(_LONGEST):
        if trial.is_terminated():
            return count
        trial.accept_token(_soonest(_allowed(trial, size), closing))
    return None
