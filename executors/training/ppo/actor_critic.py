"""The policy with its value head, and the reference that it must stay near."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from executors.base import ExecutorError

VALUE_HEAD = "value_head.safetensors"


class ActorCritic(nn.Module):
    """A causal model and a linear value head on its last hidden state; both learn the same trunk.

    The head starts with weights of standard deviation 1/√(d + 1) and no bias, d being the hidden size (Huang et al.
    2024, "The N+ Implementation Details of RLHF with PPO"). It is kept and computed in float32.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        width = policy.config.get_text_config().hidden_size
        self.policy = policy
        self.value_head = nn.Linear(width, 1)
        nn.init.normal_(self.value_head.weight, std=1 / sqrt(width + 1))
        nn.init.zeros_(self.value_head.bias)
        plain = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        self._accepted = set(signature(plain.forward).parameters)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, answer: int) -> tuple[Tensor, Tensor]:
        """Logits (rows, answer, vocabulary) and values (rows, answer) at the states before the last `answer` tokens.

        Rows are padded at both ends; positions count unmasked tokens only.
        """
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        optional = {"position_ids": positions, "logits_to_keep": answer + 1}
        output = self.policy(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=True,
            use_cache=False,
            **{key: value for key, value in optional.items() if key in self._accepted},
        )
        before = slice(-answer - 1, -1)
        with torch.autocast(input_ids.device.type, enabled=False):
            values = self.value_head(output.hidden_states[-1][:, before].float()).squeeze(-1)
        return output.logits[:, before].float(), values

    def save_value_head(self, folder: Path) -> None:
        """Write the head beside the policy."""
        save_file(
            {name: part.detach().cpu() for name, part in self.value_head.state_dict().items()}, folder / VALUE_HEAD
        )

    def load_value_head(self, folder: Path) -> None:
        """Read the head; raises ExecutorError when the folder is no checkpoint of PPO."""
        file = folder / VALUE_HEAD
        if not file.exists():
            raise ExecutorError(
                f"{folder} is no checkpoint of taskType ppo: it has no {VALUE_HEAD}.",
                "To start from its weights, name them in checkpoint.load instead of training.resume_from_path.",
            )
        self.value_head.load_state_dict(load_file(file))


class Reference:
    """The trainable parameters of a policy as they were at the start: a frozen copy of all weights, or of an adapter.

    A fresh adapter adds nothing, so its start is the model without it; an adapter that is trained on is itself the
    reference.
    """

    def __init__(self, policy: nn.Module) -> None:
        self._parameters = [part for part in policy.parameters() if part.requires_grad]
        self._start = [part.detach().clone() for part in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the policy be the reference. No gradient may be taken inside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, part in enumerate(self._parameters):
            part.data, self._start[index] = self._start[index], part.data
