"""Real Docker Engines with folders and sockets of their own, and an image made from this machine's files."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[1]
IMAGE = "mloc-test:1"
NOBODY = 1000
_START_SECONDS = 60
_LIBRARIES = (
    "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libz.so.1", "libnss_files.so.2", "libnss_dns.so.2",
    "librt.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "libutil.so.1", "libresolv.so.2",
)  # fmt: skip


class Engine:
    """One `dockerd`. It may be killed and started again."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self.folder, self._options = folder, options
        self.host = f"unix://{folder}/s"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; skips the test where it cannot run."""
        (self.folder / "pid").unlink(missing_ok=True)
        command = ["dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec",
                   "--pidfile", f"{self.folder}/pid", "-H", self.host, "--iptables=false", "--ip6tables=false",
                   "--bridge=none", *self._options]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                last = (self.folder / "log").read_text("utf-8", "replace").splitlines()[-1:]
                self.end()
                pytest.skip(f"dockerd does not run here: {last}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill the engine as a crash would; its containers may go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have it not answer; its containers go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it, its containers and its containerd."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def client(self):
        """A client of the package `docker`."""
        from docker import DockerClient

        return DockerClient(self.host, timeout=30)

    def _answers(self) -> bool:
        from docker.errors import DockerException

        try:
            return bool(self.client().ping())
        except DockerException:
            return False


@contextmanager
def engine(*options: str) -> Iterator[Engine]:
    """Run an engine with the image in it, with further options of dockerd; skips where there is none."""
    if shutil.which("dockerd") is None:
        pytest.skip("no dockerd: apt-get install docker.io")
    if os.geteuid() != 0:
        pytest.skip("dockerd needs root")
    pytest.importorskip("docker", reason="pip install 'mloc-dagster[docker]'")
    folder = Path(tempfile.mkdtemp(prefix="mloc-e-", dir="/tmp"))
    found = Engine(folder, options)
    try:
        found.start()
        _make_image(found)
        yield found
        _remove_all(found)
    finally:
        found.end()
        subprocess.run(["sh", "-c", f"umount -R {folder}/data/overlay2/*/merged {folder}/exec/netns/* 2>/dev/null"])
        shutil.rmtree(folder, ignore_errors=True)


def mounts() -> list[str]:
    """Volumes that bring this checkout and its virtual environment into containers, to be read only."""
    return [f"{path}:{path}:ro" for path in (Path(sys.prefix), ROOT / "mloc_dagster", ROOT / "executors")]


def _make_image(engine: Engine) -> None:
    """Make the image from nothing: this Python, its shared libraries, users; the packages are mounted."""
    client = engine.client()
    changes = [f"ENV PATH={Path(sys.prefix) / 'bin'}", "ENV HOME=/tmp", "ENV LANG=C.UTF-8"]
    client.api.import_image_from_data(_root_file_system(), repository="mloc-test", tag="1", changes=changes)
    client.close()


def _root_file_system() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, mode in (("tmp", 0o1777), ("var/cache/mloc", 0o1777), ("etc", 0o755), ("root", 0o755)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            archive.addfile(folder)
        passwd = b"root:x:0:0::/root:/bin/sh\nworker:x:1000:1000::/tmp:/bin/sh\n"
        for name, text in (("etc/passwd", passwd), ("etc/group", b"root:x:0:\nworker:x:1000:\n")):
            file = tarfile.TarInfo(name)
            file.size = len(text)
            archive.addfile(file, io.BytesIO(text))
        base = Path(sys.base_prefix)
        binary = Path(sys.executable).resolve()
        _add(archive, binary)
        library = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(base), "base": str(base)}))
        archive.add(library, str(library).lstrip("/"), filter=_without_tests)
        for path in sorted(_shared_libraries([binary, *library.glob("lib-dynload/*.so")])):
            _add(archive, path)
    return data.getvalue()


def _without_tests(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    skipped = ("/test", "/tests", "/site-packages", "/idlelib", "/ensurepip", "/tkinter")
    return None if any(f"{part}/" in f"{info.name}/" for part in skipped) else info


def _add(archive: tarfile.TarFile, path: Path) -> None:
    if str(path).lstrip("/") in archive.getnames():
        return
    info = archive.gettarinfo(str(path.resolve()), str(path).lstrip("/"))
    with path.open("rb") as file:
        archive.addfile(info, file)


def _shared_libraries(binaries: list[Path]) -> set[Path]:
    listed = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True).stdout.split()
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout.splitlines()
    extra = {
        line.rpartition("=> ")[2] for line in known if line.split(" ")[0].strip() in _LIBRARIES and "x86-64" in line
    }
    return {Path(word) for word in (*listed, *extra) if word.startswith("/") and ".so" in word and Path(word).exists()}


def _remove_all(engine: Engine) -> None:
    for container in engine.client().containers.list(all=True):
        container.remove(force=True, v=True)
