"""Runs one program that nobody has read, in a process that can harm nothing: started by `sandbox`, alone, never imported.

Reads {"program", "seconds", "memory", "file"} as JSON and writes one word: ``passed``, ``failed``, ``timeout``, or
``refused: why`` where the kernel does not give the walls. Only the standard library, since it runs under -I -S.

The walls, all of them the kernel's (Linux): namespaces of its own for users, network, processes, IPC and mounts; every
mount read-only, an empty /proc, and one small folder in memory to write to; no capabilities; no new process or thread,
no other program, no socket, no mount (seccomp); limits of processor time, memory, file size and open files; a wall clock.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import time
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_USER, NEW_PID, NEW_NET, NEW_MOUNTS, NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x08000000
NOSUID, NODEV, RECURSIVE, PRIVATE, READ_ONLY = 2, 4, 0x4000, 0x40000, 1
MOUNT_SETATTR, HERE, AT_RECURSIVE = 442, -100, 0x8000
NO_NEW_PRIVILEGES, SECCOMP, FILTER, DIE_WITH_PARENT = 38, 22, 2, 1
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
KILL, ALLOW, DENY = 0x80000000, 0x7FFF0000, 0x00050001  # the last: EPERM
FORBIDDEN = {
    "x86_64": (0xC000003E, (
        56, 57, 58, 435,  # clone fork vfork clone3
        59, 322,  # execve execveat
        41, 425,  # socket io_uring_setup
        165, 166, 272, 308, 101, 157,  # mount umount2 unshare setns ptrace prctl
        428, 429, 430, 431, 432, 433, 442,  # the newer calls for mounts
    )),
    "aarch64": (0xC00000B7, (
        220, 435, 221, 281, 198, 425, 40, 39, 97, 268, 117, 167, 428, 429, 430, 431, 432, 433, 442,
    )),
}  # fmt: skip
"""Machine -> its number in seccomp, and the system calls that are refused."""


class RefusedError(Exception):
    """The kernel does not give a wall."""


def call(what: str, result: int) -> None:
    """Raise unless a C function succeeded."""
    if result != 0:
        raise RefusedError(f"{what}: {os.strerror(ctypes.get_errno())}")


def separate(folder: str) -> None:
    """Enter the namespaces; the next child is the first process of its own."""
    user, group = os.geteuid(), os.getegid()
    call("namespaces", LIBC.unshare(NEW_USER | NEW_PID | NEW_NET | NEW_MOUNTS | NEW_IPC))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    call("private mounts", LIBC.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None))
    read_only = struct.pack("QQQQ", READ_ONLY, 0, 0, 0)
    call("read-only mounts", LIBC.syscall(MOUNT_SETATTR, HERE, b"/", AT_RECURSIVE, read_only, len(read_only)))
    for place, size in ((b"/proc", b"size=4k"), (folder.encode(), b"size=16m,mode=0777")):
        call("a folder in memory", LIBC.mount(b"tmpfs", place, b"tmpfs", NOSUID | NODEV, size))
    os.chdir(folder)


def confine(limits: dict[str, int]) -> None:
    """Give up, in this process, whatever is not needed to compute."""
    for kind, value in (
        (resource.RLIMIT_CPU, limits["seconds"]),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["file"]),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    call("no capabilities", LIBC.capset(header, nothing))
    call("no new privileges", LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    if platform.machine() not in FORBIDDEN:
        raise RefusedError(f"no list of system calls for {platform.machine()}")
    number, calls = FORBIDDEN[platform.machine()]
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, number), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    code += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]  # a second set of numbers for the same calls (x32)
    for place, each in enumerate(calls):
        code.append((EQUAL, len(calls) - place, 0, each))
    code += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(packed))
    call("seccomp", LIBC.prctl(SECCOMP, FILTER, program, 0, 0))


def run(program: str, limits: dict[str, int], asked: int, answer: int) -> NoReturn:
    """In the child: run the program to its end, and only then hand back the word that is waiting in `asked`."""
    try:
        call("a signal", LIBC.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0))
        confine(limits)
    except BaseException as error:
        os.write(answer, f"refused: {error}".encode())
        os._exit(1)
    os.write(answer, b"ready:")
    scope: dict[str, Any] = {"__name__": "answer"}
    try:
        exec(compile(program, "answer", "exec"), scope)
    except BaseException:  # an exit too: what ends before its tests did not pass them
        os._exit(1)
    os.write(answer, os.read(asked, 64))
    os._exit(0)


def verdict(program: str, limits: dict[str, int], folder: str) -> str:
    """Run the program in a child of new namespaces, and judge it by the word that only an end without error hands back."""
    asked, ask = os.pipe()
    answer, answered = os.pipe()
    separate(folder)
    child = os.fork()
    if child == 0:
        os.close(ask)
        os.close(answer)
        nowhere = os.open("/dev/null", os.O_RDWR)
        for place in range(3):
            os.dup2(nowhere, place)
        run(program, limits, asked, answered)
    word = os.urandom(16).hex().encode()  # made after the fork: the child has no copy of it
    os.write(ask, word)  # while this process can read it too: the child may have ended already
    for end in (asked, answered):
        os.close(end)
    ended, deadline = 0, time.monotonic() + 2 * limits["seconds"]
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not ended:
        os.kill(child, signal.SIGKILL)  # the first of its namespace: all others there end with it
        _, status = os.waitpid(child, 0)
    said = os.read(answer, 4096)
    if said == b"ready:" + word and status == 0:
        return "passed"
    if not said.startswith(b"ready:"):
        return said.decode(errors="replace") or "refused: it could not start"
    timed_out = not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
    return "timeout" if timed_out else "failed"


if __name__ == "__main__":
    given = json.load(sys.stdin)
    try:
        print(verdict(given.pop("program"), given, os.getcwd()), flush=True)
    except (RefusedError, OSError) as refusal:
        print(f"refused: {refusal}", flush=True)
