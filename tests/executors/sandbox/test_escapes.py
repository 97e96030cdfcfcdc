"""What a hostile command tries to read, reach or change outside its folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executors.sandbox.conftest import Contained

SECRET = "hunter2-of-the-deployment"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file beside the work folder."""
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


def test_a_file_outside_cannot_be_read(contained: Contained, secret: Path) -> None:
    ended = contained(["cat", str(secret)])
    assert ended.exit_code == 1 and SECRET not in ended.stdout
    assert "No such file or directory" in ended.stderr


def test_a_link_that_points_outside_leads_nowhere(contained: Contained, secret: Path, work: Path) -> None:
    (work / "before").symlink_to(secret)
    ended = contained(["sh", "-c", f"ln -s {secret} during; cat before; cat during; cat ../secret.txt"])
    assert ended.exit_code != 0 and SECRET not in ended.stdout
    assert ended.stderr.count("No such file or directory") == 3


def test_a_hard_link_to_a_file_outside_cannot_be_made(contained: Contained, secret: Path) -> None:
    ended = contained(f"import os; os.link({str(secret)!r}, 'mine')")
    assert ended.exit_code == 1 and "FileNotFoundError" in ended.stderr


def test_homes_accounts_and_keys_are_not_there(
    contained: Contained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "deployment"
    home.mkdir()
    (home / "token").write_text(SECRET)
    monkeypatch.setenv("MLOC_HOME", str(home))
    ended = contained(["sh", "-c", f"cat {home}/token; ls -A {home}; ls -A /etc/shadow /etc/passwd /run /var /sys"])
    assert ended.stdout == ""
    assert ended.stderr.count("No such file or directory") == 7


def test_a_home_among_the_readable_folders_is_covered(
    contained: Contained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "python"
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib" / "seen").write_text("library")
    (prefix / ".mloc").mkdir()
    (prefix / ".mloc" / "token").write_text(SECRET)
    monkeypatch.setattr("executors.sandbox.view._SYSTEM", ("/usr", "/bin", "/sbin", "/lib", "/lib64", str(prefix)))
    monkeypatch.setenv("MLOC_HOME", str(prefix / ".mloc"))
    ended = contained(["sh", "-c", f"cat {prefix}/lib/seen; cat {prefix}/.mloc/token; touch {prefix}/.mloc/mine"])
    assert ended.stdout == "library"
    assert "No such file" in ended.stderr and "Read-only file system" in ended.stderr


def test_the_environment_is_emptied(contained: Contained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    ended = contained("import os; print(sorted(os.environ)); print(os.environ.get('HF_TOKEN'))")
    names, token = ended.stdout.splitlines()
    assert token == "None" and "PATH" in names and "TOKEN" not in names


def test_no_process_shows_another_environment(contained: Contained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    host = subprocess.Popen(["sleep", "30"], env=os.environ | {"HF_TOKEN": SECRET})
    try:
        ended = contained(
            ["sh", "-c", f"cat /proc/[0-9]*/environ; cat /proc/{os.getpid()}/environ /proc/{host.pid}/environ"]
        )
    finally:
        host.kill()
        host.wait()
    assert "PATH=" in ended.stdout
    assert SECRET not in ended.stdout
    assert ended.stderr.count("No such file or directory") >= 1


def test_the_first_process_does_not_lead_outside(contained: Contained, secret: Path) -> None:
    ended = contained(["sh", "-c", f"cat /proc/1/root{secret}; cat /proc/1/cwd/../secret.txt; ls -l /proc/1/fd"])
    assert SECRET not in ended.stdout
    assert str(secret.parent.parent) not in ended.stdout


def test_a_loopback_server_of_the_host_cannot_be_reached(contained: Contained) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        ended = contained(f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)")
    assert ended.exit_code == 1
    assert "ConnectionRefusedError" in ended.stderr or "Network is unreachable" in ended.stderr


def test_an_abstract_socket_of_the_host_cannot_be_reached(contained: Contained) -> None:
    name = f"\0mloc-sandbox-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        server.listen()
        client.connect(name)
        ended = contained(f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})")
    assert ended.exit_code == 1 and "ConnectionRefusedError" in ended.stderr


def test_there_is_no_network_beyond_the_machine_and_no_name_service(contained: Contained) -> None:
    ended = contained(
        "import socket\n"
        "try: socket.getaddrinfo('example.org', 80)\n"
        "except socket.gaierror: print('no name')\n"
        "try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 53))\n"
        "except OSError as error: print(error.strerror)\n"
        "print([name for _, name in socket.if_nameindex()])\n"
    )
    assert ended.stdout.splitlines()[:2] == ["no name", "Network is unreachable"]
    assert ended.stdout.splitlines()[2] == "['lo']"


def test_nothing_is_written_outside(contained: Contained, tmp_path: Path, work: Path) -> None:
    beside = tmp_path / "beside"
    places = ["/usr/mine", "/etc/mine", "/mine", "/dev/mine", f"{sys.prefix}/mine", f"{sys.prefix}/bin/m"]
    ended = contained(
        ["sh", "-c", f"for p in {' '.join(places)}; do touch $p; done; touch inside /tmp/also {beside}; ls"]
    )
    assert ended.stderr.count("touch: ") == len(places)
    assert ended.stdout == "inside\n" and (work / "inside").exists()
    assert not any(Path(place).exists() for place in [*places, str(beside), "/tmp/also"])


def test_the_temporary_folder_is_its_own(contained: Contained) -> None:
    name = f"/tmp/mloc-sandbox-test-{os.getpid()}"
    assert contained(["sh", "-c", f"echo kept > {name}; cat {name}"]).stdout == "kept\n"
    assert not Path(name).exists()
    assert contained(["cat", name]).exit_code == 1


def test_switches_of_the_kernel_cannot_be_turned(contained: Contained) -> None:
    ended = contained("import os; os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)")
    assert ended.exit_code == 1 and "Read-only file system" in ended.stderr
    ended = contained(["find", "/proc", "-path", "/proc/[0-9]*", "-prune", "-o", "-type", "f", "-writable", "-print"])
    assert ended.exit_code == 0
    assert [path for path in ended.stdout.split() if not re.fullmatch("/proc/(net|thread-self|self)/.*", path)] == []


def test_the_view_cannot_be_changed(contained: Contained) -> None:
    ended = contained(
        "import ctypes, os, subprocess\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.mount(b'', b'/usr', b'', 32 | 4096, b''), libc.umount2(b'/dev', 2), libc.chroot(b'/tmp'))\n"
        "print(libc.unshare(0x10000000), libc.unshare(0x00020000))\n"
        "print([line for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapBnd'))])\n"
        "print('NoNewPrivs:\\t1' in open('/proc/self/status').read())\n"
    )
    mounts, namespaces, capabilities, privileges = ended.stdout.splitlines()
    assert mounts == "-1 -1 -1" and namespaces == "-1 -1"
    assert "1" not in capabilities and capabilities.count("0000000000000000") == 2
    assert privileges == "True"


def test_processes_of_the_host_cannot_be_signalled_or_traced(contained: Contained) -> None:
    host = subprocess.Popen(["sleep", "30"])
    try:
        ended = contained(
            "import ctypes, os\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"for pid in ({host.pid}, {os.getpid()}):\n"
            "    try: os.kill(pid, 9); print('killed')\n"
            "    except ProcessLookupError: print('no process')\n"
            "    print(libc.ptrace(16, pid, 0, 0), ctypes.get_errno())\n"
        )
        assert ended.stdout.splitlines() == ["no process", "-1 3"] * 2
        assert host.poll() is None
    finally:
        host.kill()
        host.wait()


def test_killing_everything_in_sight_ends_only_itself(contained: Contained) -> None:
    bystander = subprocess.Popen(["sleep", "30"])
    try:
        ended = contained(["sh", "-c", "kill -9 -1; kill -9 0"])
        assert ended.exit_code == 128 + signal.SIGKILL and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
