"""Process 1 of the `namespaces` backend: builds the view, gives up all capabilities, runs the command and reaps.

Handed to the interpreter as text, so standard library only: `python -I -S -c TEXT PLAN COMMAND...` with PLAN as JSON
`{work, scratch, readable, links, hidden, switches}`. See mount(2), pivot_root(2), capabilities(7), user_namespaces(7).
"""

import ctypes
import json
import os
import sys

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
NOATIME, NODIRATIME, RELATIME = 1024, 2048, 1 << 21
_KEPT = {1: RDONLY, 2: NOSUID, 4: NODEV, 8: NOEXEC, 1024: NOATIME, 2048: NODIRATIME, 4096: RELATIME}
"""statvfs(3) flag → mount flag: flags that a mount has already may not be taken away in a user namespace."""
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _CLEAR_ALL, _DETACH = 24, 38, 47, 4, 2
_CAPABILITIES_VERSION_3 = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise OSError when a call of libc failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    check(libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), f"mount {target}")


def bind(source: str, target: str, *, readonly: bool) -> None:
    """Show a file or folder at another place."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    mount(source, target, flags=BIND)
    if readonly:
        shut(target)
    else:
        mount("", target, flags=BIND | REMOUNT | NOSUID | NODEV | kept(target))


def shut(target: str) -> None:
    """Make a mount read-only."""
    mount("", target, flags=BIND | REMOUNT | RDONLY | NOSUID | kept(target))


def kept(target: str) -> int:
    """The flags that a mount has."""
    found = os.statvfs(target).f_flag
    return sum(flag for bit, flag in _KEPT.items() if found & bit)


def build(plan: dict, root: str) -> None:
    """Mount the whole view below `root`, which covers the scratch folder: hence its descriptor."""
    scratch = os.open(plan["scratch"], os.O_PATH)
    mount("none", "/", flags=REC | PRIVATE)
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, "size=4m,mode=755")
    for path, target in plan["links"].items():
        os.symlink(target, root + path)
    bind(f"/proc/self/fd/{scratch}", root + "/tmp", readonly=False)
    os.close(scratch)
    for path in plan["readable"]:
        bind(path, root + path, readonly=True)
    for path in plan["hidden"]:
        mount("tmpfs", root + path, "tmpfs", NOSUID | NODEV, "size=4m,mode=755")
    build_devices(root)
    build_processes(root, plan["switches"])
    bind(plan["work"], root + plan["work"], readonly=False)
    for path in ("/dev", *plan["hidden"]):
        shut(root + path)


def build_devices(root: str) -> None:
    """A `/dev` with harmless devices and 16 MiB of shared memory."""
    os.makedirs(root + "/dev")
    mount("tmpfs", root + "/dev", "tmpfs", NOSUID, "size=1m,mode=755")
    for name in _DEVICES:
        bind_device(f"/dev/{name}", f"{root}/dev/{name}")
    os.makedirs(root + "/dev/shm")
    mount("tmpfs", root + "/dev/shm", "tmpfs", NOSUID | NODEV, "size=16m,mode=1777")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")
    os.symlink("/proc/self/fd", root + "/dev/fd")


def bind_device(source: str, target: str) -> None:
    """Show a device."""
    open(target, "w").close()
    mount(source, target, flags=BIND)


def build_processes(root: str, switches: list[str]) -> None:
    """A `/proc` of the own processes, whose switches of the kernel cannot be turned."""
    os.makedirs(root + "/proc")
    mount("proc", root + "/proc", "proc", NOSUID | NODEV | NOEXEC)
    with open(root + "/proc/sys/user/max_user_namespaces", "w") as limit:
        limit.write("0")
    for path in switches:
        if os.path.exists(root + path):
            bind_over(root + path)


def bind_over(path: str) -> None:
    """Make a part of a mount read-only."""
    mount(path, path, flags=BIND)
    shut(path)


def enter(root: str) -> None:
    """Make `root` the root folder and let go of the old one (pivot_root(".", "."), see pivot_root(2))."""
    os.chdir(root)
    check(libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    check(libc.umount2(b".", _DETACH), "umount of the old root")
    os.chdir("/")
    shut("/")


def give_up_capabilities() -> None:
    """No capability now, and none by executing a program."""
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    for number in range(64):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0)
    check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def run(command: list[str]) -> int:
    """Start the command in a session of its own and reap until it ends; the rest ends with this process."""
    first = os.fork()
    if first == 0:
        os.setsid()
        os.execvp(command[0], command)
    while True:
        pid, status = os.wait()
        if pid == first:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    build(asked, asked["scratch"])
    enter(asked["scratch"])
    give_up_capabilities()
    os.chdir(asked["work"])
    sys.exit(run(sys.argv[2:]))
