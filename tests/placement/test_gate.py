"""Gates, from the task file to the refusal to publish: real runs of a tiny model through Dagster."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

from executors.weights import digest
from mloc_dagster.definitions.assets import build_job
from mloc_dagster.placement.local import gate
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_text
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.gates import judged_stages
from mloc_dagster.store.evaluations import Verdict, verdict_of
from mloc_dagster.store.home import Home
from mloc_dagster.store.publications import Publications
from mloc_dagster.store.results import Envelope, read_envelope, write_envelope
from tests.tiny_model import make_tiny_llama

HEAD = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: ann}}
spec:
  model: {{source: {{type: local, identifier: {model}}}}}
"""
TRAIN = """\
    - name: tune
      taskType: {kind}
      dependsOn: []
      data:
        prompts: [{{prompt: "copy: sea ->", response: SEA}}, {{prompt: "copy: sky ->", response: SKY}}]
        separator: " "
      training: {{max_steps: {steps}, batch_size: 2, learning_rate: 4e-3, seed: {seed}, max_seq_length: 64}}
      output: {{destination: {{type: local, path: "out/{name}"{asks}}}}}
"""
OUTPUTS = """\
    - name: tuned
      taskType: inference
      dependsOn: [tune]
      data: {{type: list, items: ["copy: sea ->", "copy: sky ->"], items_metadata: [{{answer: SEA}}, {{answer: SKY}}]}}
      {weights}
      inference: {{max_tokens: 8, temperature: 0}}
    - name: judge
      taskType: evaluation
      dependsOn: [tuned]
      evaluation:
        candidates: {{tuned: "${{tuned.result.items}}"}}
        reference: metadata.answer
        gate: {gate}
"""
ADAPTER = 'model: {adapters: [{type: lora, apply: merge, path: "${tune.result.final_lora_path}"}]}'
CHECKPOINT = 'checkpoint: {load: {path: "${tune.result.final_model_path}"}}'


@dataclass(frozen=True)
class Ran:
    """One run, and the task id under which its results lie."""

    result: ExecuteInProcessResult
    home: Home

    @property
    def failures(self) -> dict[str, str]:
        """Message of each step that failed."""
        events = self.result.get_step_failure_events()
        return {str(event.step_key): str(event.step_failure_data.user_failure_data) for event in events}

    @property
    def gate(self) -> tuple[bool, str]:
        """What the gate said, and why."""
        (found,) = (check for check in self.result.get_asset_check_evaluations() if check.check_name == "gate")
        return found.passed, str(found.metadata["reason"].value)

    def folder(self, stage: str) -> Path:
        """Where the results of a stage lie."""
        return self.home.run_folder(self.result.dagster_run.run_id, stage)


Run = Callable[[str], Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that can copy words."""
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home."""
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Home(tmp_path / "home")


@pytest.fixture
def run(home: Home) -> Run:
    """Run a task file's text to its end, in this process."""

    def to_the_end(text: str) -> Ran:
        job = build_job(compile_plan(load_text(text, base=home.root)), "job").job
        with DagsterInstance.ephemeral() as instance:
            return Ran(job.execute_in_process(instance=instance, raise_on_error=False), home)

    return to_the_end


def task(
    model: Path, rule: str = "", *, name: str = "t", kind: str = "lora_sft", steps: int = 60, seed: int = 42,
    asks: bool = False,
) -> str:  # fmt: skip
    """A task that trains, and where a gate is given also generates and judges."""
    text = HEAD + "  stages:\n" + TRAIN + (OUTPUTS if rule else "")
    return text.format(
        name=name, model=model, kind=kind, steps=steps, seed=seed, gate=rule,
        asks=", requires_evaluation: true" if asks else "", weights=ADAPTER if kind == "lora_sft" else CHECKPOINT,
    )  # fmt: skip


def test_weights_that_pass_are_published_and_those_that_do_not_are_held_back(run: Run, model: Path, home: Home) -> None:
    rule = "{metric: exact_match, min: 0.9}"
    good = run(task(model, rule))
    assert good.result.success and good.gate == (True, "exact_match/tuned 1, within min 0.9")
    assert (home.results / "out" / "t" / "final_lora").is_dir()
    bad = run(task(model, rule, steps=1))
    assert bad.gate == (False, "exact_match/tuned 0, below min 0.9")
    assert read_envelope(bad.folder("judge") / "responses.json").result["ok"] is True
    assert list(bad.failures) == ["published__t__tune"]
    assert "did not pass the gate t/judge: exact_match/tuned 0, below min 0.9" in bad.failures["published__t__tune"]
    published = Publications(home).latest("t/tune")
    assert published is not None and published.result == f"{good.result.dagster_run.run_id}/tune"


def test_refused_in_one_run_evaluated_in_another_then_published(run: Run, model: Path, home: Home) -> None:
    alone = task(model, asks=True, kind="sft")
    refused = run(alone)
    assert "have no passed evaluation" in refused.failures["published__t__tune"]
    assert not (home.results / "out" / "t").exists()
    judged = run(task(model, "{metric: exact_match, min: 0.9}", name="judging", kind="sft"))
    assert judged.result.success, judged.failures
    assert run(alone).result.success
    delivered = home.results / "out" / "t"
    assert (delivered / "final_model" / "model.safetensors").is_file()
    manifest = json.loads((delivered / "manifest.json").read_text("utf-8"))
    assert "final_model" in {entry["name"] for entry in manifest["entries"]}
    other = run(task(model, asks=True, kind="sft", seed=7, steps=59))
    assert "have no passed evaluation" in other.failures["published__t__tune"]


JUDGED = """\
apiVersion: mloc/v1
metadata: {{name: t}}
spec:
  stages:
    - name: train
      taskType: sft
      model: org/base
      data: {{dataset_name: org/rows}}
    - name: write
      taskType: inference
      query: hello
      checkpoint: {{load: {{path: "${{train.result.final_model_path}}"}}}}
    - name: earlier
      taskType: evaluation
      evaluation: {{metrics: [perplexity]}}
      model: org/base
      data: {{dataset_name: org/rows}}
    - name: judge
      taskType: evaluation
      dependsOn: [write, earlier]
      {evaluation}
"""
ITEMS = 'evaluation: {candidates: {one: "${write.result.items}", two: "${write.result.items}"}, gate: %s}'
MODEL = "evaluation: {metrics: [perplexity], gate: %s}\n      model: org/m\n      data: {dataset_name: org/rows}"
Metrics = dict[str, Json]


class Judged:
    """The stages of `JUDGED` with results made up."""

    def __init__(self, home: Home, evaluation: str) -> None:
        self.home = home
        self.plan = compile_plan(load_text(JUDGED.format(evaluation=evaluation)))
        self.stage = self.plan.task.stage("judge")
        self.upstream: dict[str, Path] = {}
        self.put("write", {"weights": ["sha256:aa"]})
        self.put("earlier", {"metrics": {"perplexity": 4.0}, "rows_digest": "r"})

    def put(self, stage: str, metadata: dict[str, Json]) -> Envelope:
        """Store a result of a stage."""
        folder = self.home.run_folder("task", stage)
        envelope = Envelope(
            task_id=f"task/{stage}", stage=stage, worker="w", metadata=metadata, received_at="", result={"ok": True}
        )
        write_envelope(folder, envelope)
        self.upstream[stage] = folder / "responses.json"
        return envelope

    def verdict(self, metrics: Metrics, rows: str = "r", **metadata: Json) -> Verdict:
        """Judge metrics, and record what came out."""
        envelope = self.put("judge", {"metrics": metrics, "rows_digest": rows, **metadata})
        judged = gate.judged(self.plan, self.stage, self.upstream, self.home, envelope)
        gate.record(self.home, judged)
        verdict = verdict_of(judged)
        assert verdict is not None
        return verdict


@pytest.mark.parametrize(
    ("evaluation", "metrics", "passed", "reason"),
    [
        (ITEMS % "{metric: exact_match, min: 0.5}", {"exact_match/two": 0.5}, True, "exact_match/two 0.5, within min"),
        (ITEMS % "{metric: exact_match, min: 0.5}", {"exact_match/two": 0.4}, False, "0.4, below min 0.5"),
        (ITEMS % "{metric: exact_match, max: 0.5}", {"exact_match/two": 0.6}, False, "0.6, above max 0.5"),
        (ITEMS % "{metric: exact_match, min: 0}", {"exact_match/two": "NaN"}, False, "no finite exact_match/two"),
        (ITEMS % "{metric: exact_match, min: 0}", {"exact_match/two": math.inf}, False, "no finite exact_match/two"),
        (ITEMS % "{metric: exact_match, min: 0}", {}, False, "there is no finite exact_match/two"),
        (ITEMS % "{metric: exact_match, min: 0, candidate: one}", {"exact_match/one": 0.1}, True, "exact_match/one"),
        (ITEMS % "{metric: exact_match, against: stage, min: 0.2}", {"exact_match/one": 0.3, "exact_match/two": 0.6},
         True, "by +0.3, within min 0.2"),
        (ITEMS % "{metric: exact_match, against: stage, min: 0.4}", {"exact_match/one": 0.3, "exact_match/two": 0.6},
         False, "by +0.3, below min 0.4"),
        (ITEMS % "{metric: exact_match, against: stage}", {"exact_match/two": 0.6}, False, "one has no exact_match"),
        (MODEL % "{metric: perplexity, against: stage, stage: earlier}", {"perplexity": 3.9}, True, "within max 0"),
        (MODEL % "{metric: perplexity, against: stage, stage: earlier}", {"perplexity": 4.1}, False, "above max 0"),
    ],
)  # fmt: skip
def test_what_a_gate_decides(home: Home, evaluation: str, metrics: Metrics, passed: bool, reason: str) -> None:
    verdict = Judged(home, evaluation).verdict(metrics)
    assert verdict.passed is passed and reason in verdict.reason


def test_values_of_other_rows_do_not_compare(home: Home) -> None:
    verdict = Judged(home, MODEL % "{metric: perplexity, against: stage, stage: earlier}").verdict(
        {"perplexity": 1.0}, rows="others"
    )
    assert not verdict.passed and "come from different rows" in verdict.reason


def test_against_the_latest_published(home: Home) -> None:
    case = Judged(home, ITEMS % "{metric: exact_match, against: latest_published}")
    first = case.verdict({"exact_match/two": 0.5})
    assert first.passed and "nothing of t/train is published yet" in first.reason
    gate.note_publication(
        case.plan, case.plan.task.stage("train"),
        case.put("train", {"weights_digest": "sha256:aa"}).model_copy(update={"result": {"final_model_path": "x"}}),
        home, "somewhere",
    )  # fmt: skip
    case.put("write", {"weights": ["sha256:bb"]})
    worse, same = case.verdict({"exact_match/two": 0.4}), case.verdict({"exact_match/two": 0.5})
    assert not worse.passed and "by -0.1, below min 0" in worse.reason and same.passed
    shutil.rmtree(home.index / "evaluations")
    (home.index / "evaluations").mkdir()
    unknown = case.verdict({"exact_match/two": 0.9})
    assert not unknown.passed and "have no exact_match by t/judge" in unknown.reason


def test_a_verdict_stays_until_its_rule_changes(home: Home) -> None:
    case = Judged(home, ITEMS % "{metric: exact_match, min: 0.5}")
    envelope = case.put("judge", {"metrics": {"exact_match/two": 0.5}})
    once = gate.judged(case.plan, case.stage, case.upstream, home, envelope)
    assert gate.judged(case.plan, case.stage, case.upstream, home, once, again=False) == once
    stricter = Judged(home, ITEMS % "{metric: exact_match, min: 0.6}")
    verdict = verdict_of(gate.judged(stricter.plan, stricter.stage, stricter.upstream, home, once, again=False))
    assert verdict is not None and not verdict.passed


def trained(case: Judged, weights: bytes) -> tuple[Path, Envelope]:
    """A training result with real files; returns its folder and envelope."""
    folder = case.home.run_folder("task", "train")
    (folder / "final_model").mkdir(parents=True, exist_ok=True)
    (folder / "final_model" / "model.safetensors").write_bytes(weights)
    made = case.put("train", {"weights_digest": digest(folder / "final_model")})
    return folder, made.model_copy(update={"result": {"final_model_path": str(folder / "final_model")}})


def test_what_is_held_back(home: Home) -> None:
    case = Judged(home, ITEMS % "{metric: exact_match, min: 0.5}")
    stage = case.plan.task.stage("train")
    folder, envelope = trained(case, b"weights")

    def refusal() -> str:
        with pytest.raises(gate.Refused) as caught:
            gate.require_passed(case.plan, stage, folder, envelope, home)
        return str(caught.value)

    assert "were never judged by t/judge" in refusal()
    case.put("write", {"weights": [envelope.metadata["weights_digest"]]})
    case.verdict({"exact_match/two": 0.4})
    assert "did not pass the gate t/judge: exact_match/two 0.4, below min 0.5" in refusal()
    case.verdict({"exact_match/two": 0.6})
    gate.require_passed(case.plan, stage, folder, envelope, home)
    stricter = Judged(home, ITEMS % "{metric: exact_match, min: 0.55}")
    with pytest.raises(gate.Refused, match="when its gate was another one"):
        gate.require_passed(stricter.plan, stage, folder, envelope, home)
    (folder / "final_model" / "model.safetensors").write_bytes(b"changed")
    assert "are not those that it made" in refusal()
    shutil.rmtree(folder / "final_model")
    assert "its weights are gone" in refusal()


def test_an_adapter_on_another_base_is_another_thing(home: Home) -> None:
    case = Judged(home, ITEMS % "{metric: exact_match, min: 0.5}")
    folder = home.run_folder("task", "train")
    (folder / "final_lora").mkdir(parents=True)
    (folder / "final_lora" / "adapter_model.safetensors").write_bytes(b"adapter")
    made = digest(folder / "final_lora")
    case.put("write", {"weights": ["sha256:base", made]})
    case.verdict({"exact_match/two": 1.0})
    for base, refused in (("sha256:base", False), ("sha256:other", True)):
        envelope = case.put("train", {"weights_digest": made, "start_weights_digest": base})
        envelope = envelope.model_copy(update={"result": {"final_lora_path": str(folder / "final_lora")}})
        with pytest.raises(gate.Refused, match="never judged") if refused else nullcontext():
            gate.require_passed(case.plan, case.plan.task.stage("train"), folder, envelope, home)


def test_weights_are_published_after_their_gate() -> None:
    plan = compile_plan(load_text(task(Path("/m"), "{metric: exact_match, min: 0.9}")))
    assert plan.by_key["published/t/tune"].depends_on == ("t/tune", "t/judge")


def test_only_what_a_candidate_is_made_of_is_judged() -> None:
    text = JUDGED.format(evaluation=ITEMS % "{metric: exact_match, min: 1}")
    stages = load_text(text).stages
    assert judged_stages(stages, stages[-1]) == ("train",)
    untrained = load_text(text.replace("final_model_path", "output_dir").replace("${train.result.output_dir}", "/m"))
    assert judged_stages(untrained.stages, untrained.stages[-1]) == ()
