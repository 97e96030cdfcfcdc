"""Throughput of our training against a plain TRL script: `python benchmarks/training.py [--steps 60] [--repeat 5]`.

The same model, rows and settings, `sft` and `dpo`, in turns, each in a process of its own. Prints tokens a second of
`trainer.train()` by the clock and by CPU time, and exits with 1 when our median is below 0.97 of the plain one's by
both (a busy machine disturbs the clock).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
LEAST = 0.97
_SETTINGS = {
    "per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_length": 256, "logging_steps": 10, "seed": 1,
}  # fmt: skip
_CLOCK = """
import json, time
from transformers import Trainer

def clock(trainer_class):
    plain = trainer_class.train
    def train(self, *arguments, **options):
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return plain(self, *arguments, **options)
        finally:
            clocked = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            seen = [line["num_tokens"] for line in self.state.log_history if "num_tokens" in line]
            print("CLOCK " + json.dumps({**clocked, "tokens": seen[-1] if seen else 0}), flush=True)
    trainer_class.train = train

clock(Trainer)
"""
_PLAIN = """
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

kind, folder, rows, steps, settings = {kind!r}, {model!r}, {rows!r}, {steps}, {settings!r}
config, trainer = (SFTConfig, SFTTrainer) if kind == "sft" else (DPOConfig, DPOTrainer)
args = config(
    output_dir={out!r}, max_steps=steps, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
    disable_tqdm=True, gradient_checkpointing=False, dataloader_pin_memory=False, **settings,
)
trainer(
    model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), args=args,
    train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(folder),
).train()
"""
_OURS = """
from pathlib import Path
from executors.host import execute
from executors.job import Job

execute(Job(task_id="t", task_name="t", stage="s", raw={raw!r}, out=Path({out!r}), model_path=Path({model!r})))
"""


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a run")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each that a median is taken of")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, "-m", "executors.tiny_llama", str(folder / "model")],
            check=True, capture_output=True, cwd=ROOT,
        )  # fmt: skip
        return max(_compare(kind, folder, given.steps, given.repeat) for kind in ("sft", "dpo"))


def _compare(kind: str, folder: Path, steps: int, repeat: int) -> int:
    times: dict[str, list[dict[str, float]]] = {"plain TRL": [], "ours": []}
    for number in range(repeat):
        out = str(folder / f"{kind}-{number}")
        code = {
            "plain TRL": _PLAIN.format(**_of(kind, folder, steps), out=f"{out}-plain"),
            "ours": _OURS.format(raw=_task(kind, steps), model=str(folder / "model"), out=f"{out}-ours"),
        }
        for name in sorted(code, reverse=number % 2 == 0):  # neither is always the first
            times[name].append(_run(code[name]))
    tokens = max(one["tokens"] for one in times["plain TRL"])
    rate = {
        name: {clock: tokens / statistics.median(run[clock] for run in runs) for clock in ("wall", "cpu")}
        for name, runs in times.items()
    }
    ratio = {clock: rate["ours"][clock] / rate["plain TRL"][clock] for clock in ("wall", "cpu")}
    for name, found in rate.items():
        print(f"{kind} {name}: {found['wall']:.0f} tokens/s, {found['cpu']:.0f} tokens/CPU s")
    print(f"{kind} ratio: {ratio['wall']:.3f} by the clock, {ratio['cpu']:.3f} by CPU time")
    return int(max(ratio.values()) < LEAST)


def _rows(kind: str) -> list[dict[str, str]]:
    words = [f"{number * 7919 % 100003:05d}" * (2 + number % 6) for number in range(256)]
    if kind == "sft":
        return [{"prompt": f"copy: {word} ->", "completion": f" {word}"} for word in words]
    return [{"prompt": f"copy: {word} ->", "chosen": f" {word}", "rejected": f" {word[::-1]}"} for word in words]


def _of(kind: str, folder: Path, steps: int) -> dict[str, object]:
    return {
        "kind": kind, "model": str(folder / "model"), "rows": _rows(kind), "steps": steps, "settings": _SETTINGS,
    }  # fmt: skip


def _task(kind: str, steps: int) -> dict[str, object]:
    rows = _rows(kind)
    settings = {**_SETTINGS, "max_seq_length": _SETTINGS["max_length"], "max_steps": steps, "save_steps": 10 * steps}
    del settings["max_length"]
    data = {"separator": "", "prompts" if kind == "sft" else "preferences": rows}
    source = {"source": {"type": "local", "identifier": "tiny"}}
    return {"task_type": kind, "model": source, "data": data, "training": settings}


def _run(code: str) -> dict[str, float]:
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _CLOCK + code], env={**os.environ, **threads}, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("CLOCK ")]
    if done.returncode or not lines:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return json.loads(lines[-1].removeprefix("CLOCK "))


if __name__ == "__main__":
    sys.exit(main())
