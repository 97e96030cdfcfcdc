"""Engines that are reached by tcp with TLS, and by ssh."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.placement.docker.carrier import DockerCarrier
from mloc_dagster.placement.docker.client import connect
from mloc_dagster.placement.remote.carrier import CarrierError, Ending, Order, Unreachable
from mloc_dagster.placement.workers.engine import Docker
from tests.delivery.test_http import unused_port
from tests.docker_engine import IMAGE, Engine, engine, mounts
from tests.waiting import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Authority:
    """Signs certificates."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
                      "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip

    def sign(self, name: str, usage: str) -> dict[str, str]:
        """Make a key and a certificate for 127.0.0.1; returns their paths, and that of the authority's own."""
        (self.folder / "extensions").write_text(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n")
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                      "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                      "-days", "1", "-extfile", "extensions", "-out", f"{name}.pem")  # fmt: skip
        files = {"ca": "ca.pem", "cert": f"{name}.pem", "key": f"{name}.key"}
        return {key: str(self.folder / file) for key, file in files.items()}

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str, Authority]]:
    """An engine that listens on a port with tlsverify; its address, and who signs."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: apt-get install openssl")
    authority = Authority(tmp_path_factory.mktemp("tls") / "authority")
    own, port = authority.sign("engine", "serverAuth"), unused_port()
    options = [f"--tlscacert={own['ca']}", f"--tlscert={own['cert']}", f"--tlskey={own['key']}", "--tlsverify"]
    with engine("-H", f"tcp://127.0.0.1:{port}", *options) as found:
        yield found, f"tcp://127.0.0.1:{port}", authority


def declared(host: str, **more: Any) -> Docker:
    return Docker.model_validate({"host": host, "image": IMAGE, "network": "host", "volumes": mounts(), **more})


def carried_out(docker: Docker, attempt: str) -> str:
    """Start an attempt on an engine that has nothing to do, and return what it says of that."""
    order = Order(
        job="jobs/w/t", attempt=attempt, store="file:///nowhere", key=f"jobs/w/t/{attempt}",
        environment={"PYTHONPATH": str(Path(__file__).absolute().parents[3])}, cpu=None, share=500, memory=512 << 20,
    )  # fmt: skip
    carrier = DockerCarrier("box", docker, order.store)
    carried = carrier.start(order)
    assert [one.attempt for one in carrier.find(order.job)] == [attempt]
    said = b"".join(block for block in carried.stream() if isinstance(block, bytes))
    wait_for(lambda: carried.ending() is not None, "its end")
    assert carried.ending() == Ending(1)
    carried.remove(failed=False)
    assert list(carrier.find(order.job)) == []
    return said.decode()


def test_an_engine_with_tls(
    guarded: tuple[Engine, str, Authority], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, host, authority = guarded
    ours = authority.sign("us", "clientAuth")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ours["cert"])  # it is for other servers
    said = carried_out(declared(host, tls=ours), "a1")
    assert "the artifact store file:///nowhere holds no jobs/w/t/a1/job.json" in said

    stranger = Authority(tmp_path / "stranger")
    with pytest.raises(CarrierError, match=r"(?s)certificate verify failed.*check docker.tls") as told:
        connect(declared(host, tls={**ours, "ca": str(stranger.folder / "ca.pem")}))
    assert told.value.lasting
    with pytest.raises((CarrierError, Unreachable), match=r"tls of tcp://127|does not answer"):
        connect(declared(host, tls={**stranger.sign("us", "clientAuth"), "ca": ours["ca"]})).ping()
    with pytest.raises(CarrierError, match="check the paths"):
        connect(declared(host, tls={**ours, "key": "/nowhere.key"}))


def test_an_engine_by_ssh(
    guarded: tuple[Engine, str, Authority], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program `ssh` is one that takes the command to the engine of this machine: no sshd is needed for that."""
    found, _, _ = guarded
    if shutil.which("docker") is None:
        pytest.skip("no docker client: apt-get install docker.io")
    log, program = tmp_path / "asked", tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec docker -H {found.host} system dial-stdio\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    said = carried_out(declared("ssh://me@box:2222"), "b1")
    assert "holds no jobs/w/t/b1/job.json" in said
    assert set(log.read_text().splitlines()) == {"-l me -p 2222 -- box docker system dial-stdio"}
    program.write_text("#!/bin/sh\necho 'me@box: Permission denied (publickey).' >&2\nexit 255\n")
    with pytest.raises(Unreachable, match="the Docker Engine ssh://me@box:2222 does not answer"):
        connect(declared("ssh://me@box:2222")).ping()
