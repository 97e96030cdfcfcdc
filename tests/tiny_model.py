"""The tiny Llama of the quickstart, for tests."""

from executors.tiny_llama import ANSWER, CHAT_TEMPLATE, PROMPT, make_tiny_llama, make_tokenizer

__all__ = ["ANSWER", "CHAT_TEMPLATE", "PROMPT", "make_tiny_llama", "make_tokenizer"]
