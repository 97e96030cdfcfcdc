"""Rewards that a model gives: a sequence classifier read as a score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.messages import Message, is_conversation
from executors.training.devices import on_gpu
from executors.weights import ADAPTER_FILE, MODEL_FILE, trusts_code
from mloc_dagster.spec.model import RewardModel

if TYPE_CHECKING:
    from executors.training.reward_functions import RewardFunction, Row

_BATCH = 16
_NAMES = {"positive": ("positive", "pos"), "negative": ("negative", "neg")}


def model_score(ctx: TaskContext, reward: RewardModel) -> RewardFunction:
    """Load the model of `spec.reward_model` and return it as a reward function.

    `sentiment` reads the completion alone, the other types prompt and completion (through the model's chat template
    when it has one). Raises ExecutorError when the model cannot be loaded whole or its labels are not those asked for.
    """
    folder = reward_folder(ctx, reward)
    model, tokenizer = _load(folder, trusts_code(ctx), on_gpu(ctx))
    plus, minus = _labels(reward, model.config)
    longest = reward.max_length or _longest(model, tokenizer)

    def score(prompts: list[str], completions: list[str], rows: Sequence[Row]) -> list[float]:
        if reward.type == "sentiment":
            texts = completions
        else:
            texts = [_text(tokenizer, *one) for one in zip(prompts, completions, rows, strict=True)]
        found: list[float] = []
        for start in range(0, len(texts), _BATCH):
            found += _values(_logits(model, tokenizer, texts[start : start + _BATCH], longest), plus, minus)
        return found

    return score


def reward_folder(ctx: TaskContext, reward: RewardModel) -> Path:
    """The folder of the model: what was pulled for the stage, or a path; raises ExecutorError when there is none."""
    folder = ctx.reward_model_path or Path(str(reward.identifier).removeprefix("file://")).expanduser()
    if not any((folder / name).exists() for name in (MODEL_FILE, ADAPTER_FILE)):
        raise ExecutorError(
            f"reward_model.identifier {reward.identifier!r} cannot be used: {folder} holds no model "
            f"({MODEL_FILE} or {ADAPTER_FILE}).",
            "Write a hub id, a folder, or ${stage.result.final_model_path}.",
        )
    return folder


def _load(folder: Path, trust_code: bool, gpu: bool) -> tuple[Any, Any]:
    arguments: dict[str, Any] = {"trust_remote_code": trust_code, "dtype": "bfloat16" if gpu else "float32"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_code)
        load = _with_adapter if (folder / ADAPTER_FILE).exists() else _whole
        model = load(folder, arguments)
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"The reward model {folder} cannot be loaded: {str(error).splitlines()[0]}",
            "It must be a sequence classifier; remote code runs only where the deployment allows it.",
        ) from error
    tokenizer.truncation_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval().to("cuda" if gpu else "cpu"), tokenizer


def _whole(folder: Path, arguments: dict[str, Any]) -> Any:
    """A classifier with all its weights; a head that is not in the files would be random, so it is refused."""
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True, **arguments)
    if info["missing_keys"]:
        raise ExecutorError(
            f"The reward model {folder} lacks weights of a classifier: {', '.join(sorted(info['missing_keys'])[:3])}.",
            "Train one with taskType: reward and write ${stage.result.final_model_path}, or name a classifier.",
        )
    return model


def _with_adapter(folder: Path, arguments: dict[str, Any]) -> Any:
    """The base model with a LoRA adapter and the head that was saved beside it."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    if str(config.task_type) not in ("SEQ_CLS", "TaskType.SEQ_CLS"):
        raise ExecutorError(
            f"The reward model {folder} is an adapter of type {config.task_type}, not of a classifier (SEQ_CLS).",
            "Name what a reward stage left: ${stage.result.final_lora_path}.",
        )
    base = AutoModelForSequenceClassification.from_pretrained(
        str(config.base_model_name_or_path), num_labels=1, **arguments
    )
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


def _longest(model: Any, tokenizer: Any) -> int | None:
    """Tokens that the model can take; some tokenizers say that it is fewer than there are positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(positions, tokenizer.model_max_length) if positions else None


def _labels(reward: RewardModel, config: Any) -> tuple[int | None, int | None]:
    """Numbers of the labels that count for and against a text; (None, None) where the one output is the score."""
    labels = {str(label).lower(): int(index) for index, label in config.id2label.items()}
    if reward.type == "regression" or (len(labels) == 1 and not (reward.positive_label or reward.negative_label)):
        if len(labels) != 1:
            raise ExecutorError(
                f"reward_model.type is regression, but {reward.identifier} has {len(labels)} outputs: "
                f"{', '.join(labels)}.",
                "Write type: classification and positive_label.",
            )
        return None, None
    plus = _label(reward.positive_label, "positive", labels, reward)
    minus = _label(reward.negative_label, "negative", labels, reward)
    if plus is None and minus is None:
        raise ExecutorError(
            f"{reward.identifier} has the labels {', '.join(labels)}, and none is said to count for a text.",
            "Write reward_model.positive_label (and negative_label).",
        )
    return plus, minus


def _label(asked: str | None, side: str, labels: dict[str, int], reward: RewardModel) -> int | None:
    if asked is None:
        names = _NAMES[side] if reward.type == "sentiment" else ()
        return next((labels[name] for name in names if name in labels), None)
    if asked.lower() in labels:
        return labels[asked.lower()]
    raise ExecutorError(
        f"reward_model.{side}_label is {asked!r}, which {reward.identifier} does not have.",
        f"Its labels: {', '.join(labels)}.",
    )


def _text(tokenizer: Any, prompt: str, completion: str, row: Row) -> str:
    if not tokenizer.chat_template:
        return f"{prompt}{completion}{_end(tokenizer)}"
    asked = row.get("prompt")
    turns: list[Message] = asked if is_conversation(asked) else [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": completion}], tokenize=False)


def _end(tokenizer: Any) -> str:
    """The end token, where the tokenizer does not put it itself: reward models learn to score there."""
    end = tokenizer.eos_token
    return end if end and tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id else ""


@torch.no_grad()
def _logits(model: Any, tokenizer: Any, texts: list[str], longest: int | None) -> torch.Tensor:
    """Outputs of shape (texts, labels), in float32."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=longest is not None, max_length=longest)
    return model(**batch.to(model.device)).logits.float()


def _values(logits: torch.Tensor, plus: int | None, minus: int | None) -> list[float]:
    """The one output itself, or the probability of the positive label minus that of the negative one."""
    if plus is None and minus is None:
        return logits[:, 0].tolist()
    shares = logits.softmax(dim=-1)
    total = torch.zeros(len(shares), device=shares.device)
    if plus is not None:
        total = total + shares[:, plus]
    if minus is not None:
        total = total - shares[:, minus]
    return total.tolist()
