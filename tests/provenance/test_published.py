"""Weights that a real training made and that were published: their document, and what tampering with them shows."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from dagster import DagsterInstance
from typer.testing import CliRunner

from mloc_dagster.cli import app
from mloc_dagster.definitions.assets import build_job
from mloc_dagster.plan import compile_plan
from mloc_dagster.provenance.keys import SETTING, own_key
from mloc_dagster.provenance.names import DOCUMENT, PUBLIC_KEY
from mloc_dagster.provenance.signature import canonical, signed
from mloc_dagster.spec import load_file, load_text
from mloc_dagster.spec.load import with_base
from mloc_dagster.store.home import Home
from tests.tiny_model import make_tiny_llama

pytestmark = pytest.mark.slow
TASK = """\
apiVersion: mloc/v1
metadata: {{name: teach, owner: ann, project: demo}}
spec:
  taskType: {kind}
  model: {{source: {{type: local, identifier: {model}}}}}
  data:
    prompts: [{{prompt: "copy: sea ->", response: SEA}}, {{prompt: "copy: sky ->", response: SKY}}]
    separator: " "
  training: {{max_steps: 3, batch_size: 2, learning_rate: 4e-3, seed: 7, max_seq_length: 64}}
  output: {{destination: {{type: local, path: shelf/{kind}}}}}
"""


def run(task_file: Path, home: Path, *, submitted: bool = False, fresh: bool = False) -> str:
    """Run a task file in this process and return the task's id."""
    task = load_file(task_file)
    if submitted:
        task = load_text(with_base(task.text, task_file.parent))
    job = build_job(compile_plan(task), "job").job
    with DagsterInstance.ephemeral() as instance, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOC_HOME", str(home))
        tags = {"mloc/fresh": "true"} if fresh else {}
        done = job.execute_in_process(instance=instance, tags=tags)
        assert done.success
        return done.dagster_run.run_id


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository that holds the task files; the model is beside it."""
    folder = tmp_path_factory.mktemp("made")
    make_tiny_llama(folder / "tiny", steps=0)
    where = folder / "repository"
    (where / "tasks").mkdir(parents=True)
    for kind in ("sft", "lora_sft"):
        (where / "tasks" / f"{kind}.yaml").write_text(TASK.format(kind=kind, model=folder / "tiny"))
    git(where, "init", "-q")
    git(where, "add", ".")
    git(where, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "tasks")
    return where


@pytest.fixture(scope="module")
def published(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """A home in which both task files were run and published; and the id of the task of all weights."""
    home = Home(tmp_path_factory.mktemp("state") / "home")
    first = run(repository / "tasks" / "sft.yaml", home.root)
    run(repository / "tasks" / "lora_sft.yaml", home.root)
    return home, first


@pytest.fixture
def shelf(published: tuple[Home, str], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of what was published, to tamper with."""

    def copy(kind: str = "sft") -> Path:
        return shutil.copytree(published[0].results / "shelf" / kind, tmp_path / kind)

    return copy


def verify(home: Home, target: object, *more: str) -> tuple[int, dict]:
    """What `mloc provenance verify --json` says, and its exit code."""
    done = CliRunner().invoke(app, ["--home", str(home.root), "provenance", "verify", str(target), "--json", *more])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


def properties(component: dict) -> dict[str, str]:
    """The properties of a component by name."""
    return {one["name"]: one["value"] for one in component.get("properties", ())}


def test_the_document_tells_where_the_weights_come_from(published: tuple[Home, str], repository: Path) -> None:
    home, task_id = published
    text = (home.results / "shelf" / "sft" / DOCUMENT).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    model, parts = document["metadata"]["component"], {one["bom-ref"]: one for one in document["components"]}
    envelope = json.loads((home.run_folder(task_id, "sft") / "responses.json").read_text())
    told = properties(model)
    assert told["mloc:weights:digest"] == envelope["result"]["weights_digest"]
    assert told["mloc:seed"] == "7" and told["mloc:training:max_steps"] == "3"
    assert told["mloc:git:commit"] == git(repository, "rev-parse", "HEAD")
    assert told["mloc:git:path"] == "tasks/sft.yaml" and told["mloc:git:modified"] == "false"
    assert properties(parts["input:model"])["mloc:weights:digest"] == envelope["result"]["initial_weights_digest"]
    assert properties(parts["input:rows"])["mloc:digest"].startswith("sha256:")
    assert parts["device:0"]["type"] == "device"
    import torch

    assert parts["pkg:torch"]["version"] == torch.__version__
    assert {"final_model/config.json", "artifacts/final_model.tar.gz"} <= {one["name"] for one in model["components"]}
    assert str(repository.parent) not in text  # nothing of this machine's folders


def test_the_key_is_its_users_alone_and_its_public_half_is_shipped(published: tuple[Home, str]) -> None:
    home, _ = published
    assert stat.S_IMODE(own_key(home).stat().st_mode) == 0o600
    assert "PRIVATE" not in (home.results / "shelf" / "sft" / PUBLIC_KEY).read_text()


def test_the_same_inputs_give_the_same_document(
    published: tuple[Home, str], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another home, as a submitted copy; only the serial number, the time and the signature over them differ."""
    home, _ = published
    monkeypatch.setenv(SETTING, str(own_key(home)))
    run(repository / "tasks" / "sft.yaml", tmp_path / "other", submitted=True)
    first = json.loads((home.results / "shelf" / "sft" / DOCUMENT).read_text())
    second = json.loads((Home(tmp_path / "other").results / "shelf" / "sft" / DOCUMENT).read_text())
    assert first["serialNumber"] != second["serialNumber"]
    for one in (first, second):
        del one["serialNumber"], one["metadata"]["timestamp"], one["signature"]["value"]
    assert canonical(first) == canonical(second)


@pytest.mark.parametrize("kind", ["sft", "lora_sft"])
def test_what_is_published_verifies(published: tuple[Home, str], shelf: Callable[[str], Path], kind: str) -> None:
    home, task_id = published
    code, told = verify(home, shelf(kind))
    assert (code, told["ok"], told["findings"]) == (0, True, [])
    assert len(told["files"]) > 3
    for target in ("teach", task_id, f"{task_id}/sft"):
        assert verify(home, target)[0] == 0


def test_a_reused_result_has_a_document_of_its_own(published: tuple[Home, str], repository: Path) -> None:
    home, first = published
    second = run(repository / "tasks" / "sft.yaml", home.root)
    assert not (home.run_folder(second, "sft") / "final_model").exists()
    assert verify(home, second)[0] == 0
    one, other = (json.loads((home.run_folder(task, "sft") / DOCUMENT).read_text()) for task in (first, second))
    assert one["serialNumber"] != other["serialNumber"]
    assert one["metadata"]["component"] == other["metadata"]["component"]


def test_an_archive_alone_and_a_hubs_copy_verify(
    published: tuple[Home, str], shelf: Callable[[str], Path], tmp_path: Path
) -> None:
    home, _ = published
    folder = shelf("sft")
    shutil.rmtree(folder / "final_model")
    assert verify(home, folder)[0] == 0
    flat = tmp_path / "flat"
    shutil.copytree(shelf("lora_sft") / "final_lora", flat)
    for name in (DOCUMENT, PUBLIC_KEY):
        shutil.copy(tmp_path / "lora_sft" / name, flat)
    assert verify(home, flat)[0] == 0
    (flat / "more.py").write_text("import os\n")
    code, told = verify(home, flat)
    assert code == 1 and [one["kind"] for one in told["findings"]] == ["added"]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _edit(folder: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((folder / DOCUMENT).read_text())
    change(document)
    (folder / DOCUMENT).write_text(json.dumps(document))


def _sign_anew(folder: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    document = json.loads((folder / DOCUMENT).read_text())
    del document["signature"]
    (folder / DOCUMENT).write_text(json.dumps(signed(document, Ed25519PrivateKey.generate())))


def _replace_weights(folder: Path) -> None:
    """Other weights, with the hash in the document made right: only the signature tells."""
    import hashlib

    path = folder / "final_model" / "model.safetensors"
    _flip(path)
    now = hashlib.sha256(path.read_bytes()).hexdigest()

    def change(document: dict) -> None:
        files = document["metadata"]["component"]["components"]
        next(one for one in files if one["name"].endswith("model.safetensors"))["hashes"][0]["content"] = now

    _edit(folder, change)


def _version(document: dict) -> None:
    document["components"][0]["version"] = "0.0.1"


TAMPERINGS: list[tuple[str, Callable[[Path], object], set[str], str]] = [
    ("weights", lambda at: _flip(at / "final_model" / "model.safetensors"), {"changed", "weights"}, "was changed"),
    ("config", lambda at: (at / "final_model" / "config.json").write_text("{}"), {"changed"}, "config.json was"),
    ("archive", lambda at: _flip(at / "artifacts" / "final_model.tar.gz"), {"changed"}, "final_model.tar.gz was"),
    ("missing", lambda at: (at / "final_model" / "config.json").unlink(), {"missing"}, "config.json is missing"),
    ("added", lambda at: (at / "final_model" / "model.py").write_text("1"), {"added"}, "model.py is not in"),
    ("document", lambda at: _edit(at, lambda d: _version(d)), {"signature"}, "changed after it was signed"),
    ("hash", _replace_weights, {"signature", "weights"}, "changed after it was signed"),
    ("unsigned", lambda at: _edit(at, lambda d: d.pop("signature")), {"signature"}, "signature was removed"),
    ("damaged", lambda at: _edit(at, lambda d: d["signature"].pop("value")), {"signature"}, "cannot be read"),
    ("signed anew", _sign_anew, {"key"}, "someone else has signed it"),
    ("no json", lambda at: (at / DOCUMENT).write_text("{"), {"document"}, "is no JSON"),
    ("no document", lambda at: (at / DOCUMENT).unlink(), {"document"}, f"there is no {DOCUMENT}"),
    (
        "other bom",
        lambda at: (at / DOCUMENT).write_text('{"bomFormat": "CycloneDX"}'),
        {"document"},
        "not name a model",
    ),
    ("key beside", lambda at: (at / PUBLIC_KEY).write_text("?"), {"key"}, "is no public key"),
    (
        "emptied",
        lambda at: (shutil.rmtree(at / "final_model"), shutil.rmtree(at / "artifacts")),
        {"missing"},
        "neither",
    ),
]


@pytest.mark.parametrize(
    ("tamper", "kinds", "what"), [one[1:] for one in TAMPERINGS], ids=[one[0] for one in TAMPERINGS]
)
def test_each_tampering_is_told(
    published: tuple[Home, str], shelf: Callable[[str], Path], tamper: Callable, kinds: set[str], what: str
) -> None:
    folder = shelf("sft")
    tamper(folder)
    code, told = verify(published[0], folder)
    assert code == 1 and told["ok"] is False
    assert kinds <= {one["kind"] for one in told["findings"]}
    assert any(what in one["what"] for one in told["findings"]), told["findings"]


def test_links_and_names_that_lead_elsewhere_are_not_followed(
    published: tuple[Home, str], shelf: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, weights = shelf("sft"), "final_model/model.safetensors"
    shutil.move(folder / weights, tmp_path / "elsewhere")
    (folder / weights).symlink_to(tmp_path / "elsewhere")
    code, told = verify(published[0], folder)
    assert code == 1 and f"{weights} is missing" in [one["what"] for one in told["findings"]]


def test_elsewhere_the_publishers_key_must_be_named(
    published: tuple[Home, str], shelf: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, stranger = shelf("sft"), Home(tmp_path / "stranger")
    code, told = verify(stranger, folder)
    assert code == 1 and [one["kind"] for one in told["findings"]] == ["key"]
    assert "--key" in told["findings"][0]["what"]
    assert not own_key(stranger).exists()  # looking makes none
    assert verify(stranger, folder, "--key", str(published[0].results / "shelf" / "sft" / PUBLIC_KEY))[0] == 0
    assert verify(stranger, folder, "--key", str(folder / "responses.json"))[0] == 2
    assert verify(stranger, "nothing")[0] == 2


def test_show_tells_people_and_programs(published: tuple[Home, str]) -> None:
    home, _ = published
    shown = CliRunner().invoke(app, ["--home", str(home.root), "provenance", "show", "teach"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "git:commit" in shown.stdout and "model.safetensors" in shown.stdout
    told = CliRunner().invoke(app, ["--home", str(home.root), "provenance", "show", "teach", "--json"])
    assert json.loads(told.stdout)["bomFormat"] == "CycloneDX"


def test_a_key_that_is_none_stops_the_publication(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path / "none.pem"))
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    job = build_job(compile_plan(load_file(repository / "tasks" / "sft.yaml")), "job").job
    with DagsterInstance.ephemeral() as instance:
        done = job.execute_in_process(instance=instance, raise_on_error=False)
    (failure,) = done.get_step_failure_events()
    assert f"{SETTING} names" in str(failure.step_failure_data.user_failure_data)
    assert not (Home(tmp_path / "home").results / "shelf").exists()


def git(folder: Path, *arguments: str) -> str:
    """What git prints."""
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
