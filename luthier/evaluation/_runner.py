"""Runs generated Python programs: another process that may compute, print, and nothing else.

    run(program, tests, limits)  ->  Verdict(status, passed, message, stdout)

What a program cannot do, and what sees to it:

    network, processes, threads, writing,    the kernel: a list of permitted system calls (seccomp); opening a file for
    deleting, signals to others              writing is not on it, nor is anything that makes a socket or a process
    reading beyond Python's own files        an audit hook inside the interpreter
    much time, memory, file size             rlimits, and a clock outside that kills the whole process group
    much output                              the reader outside, which kills as well
    leaving before the tests were run        every verdict is announced with a word that is drawn for each run

Where the kernel cannot be told this (anything but Linux on x86-64 and arm64), `run` refuses. Verdicts are the same every
time: hash seed and `random` are fixed, limits count processor time first, and messages hold no addresses. A program is
in the same interpreter as its tests: it can be kept from harming the machine, but not from studying how it is marked.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from luthier.core.method import Refusal

STATUSES = ("passed", "failed", "error", "syntax", "exit", "timeout", "memory", "output", "killed")


@dataclass(frozen=True)
class RunLimits:
    """What a program may use.

    cpu_seconds  of processor time;  seconds  by the clock, for programs that wait: more than cpu_seconds, so that a busy
                 machine does not change a verdict
    memory_mb    of address space, the interpreter's 30 or so included
    output_bytes printed, of both streams together
    """

    cpu_seconds: int = 3
    seconds: float = 15.0
    memory_mb: int = 256
    output_bytes: int = 65536


@dataclass(frozen=True)
class Verdict:
    """How a run went.

    status   passed: the program ran and all tests hold;  failed: an assertion does not;  error: an exception;
             syntax: it is no Python;  exit: it left early;  timeout, memory, output: a limit;  killed: by a signal
    passed   one for each test
    message  of the first thing that went wrong
    """

    status: str
    passed: tuple[bool, ...] = ()
    message: str = ""
    stdout: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "passed"

    @property
    def compiles(self) -> bool:
        return self.status != "syntax"


def run(program: str, tests: Sequence[str] = (), limits: RunLimits = RunLimits()) -> Verdict:
    """Run `program`, then each of `tests` (statements, usually an assert) in its names. Raises Refusal."""
    if (why := unavailable()) is not None:
        raise Refusal(f"generated programs are not run here: {why}")
    return _run(program, tests, limits)


@cache
def unavailable() -> str | None:
    """Why programs cannot be run safely on this machine, or None. Found out by trying."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return f"the system calls of {sys.platform} on {platform.machine()} cannot be restricted; use Linux, in a container"
    if (first := _run("", (), RunLimits())).ok:
        blocked = _run("import os\nos.pipe()", (), RunLimits())  # a call that only the kernel's list forbids
        return None if "not permitted" in blocked.message else f"the kernel does not hold it back ({blocked.status})"
    return f"the kernel refuses to restrict system calls ({first.status}: {first.message})"


# ---------------------------------------------------------------------------------------------------- outside


def _run(program: str, tests: Sequence[str], limits: RunLimits) -> Verdict:
    word = secrets.token_hex(16)
    told = {
        "word": word, "program": program, "tests": list(tests), "calls": _CALLS[platform.machine()],
        "arch": _ARCHITECTURES[platform.machine()], **asdict(limits),
    }  # fmt: skip
    report, write_end = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(_CHILD), str(write_end)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(write_end,), cwd="/",
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(write_end)
    try:
        texts, ended = _watch(child, report, json.dumps(told).encode(), limits)
    finally:
        _kill(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()
        os.close(report)
    return _verdict(word, texts, ended, child.returncode, len(tests))


def _watch(child: subprocess.Popen[bytes], report: int, told: bytes, limits: RunLimits) -> tuple[dict[str, bytes], str]:
    """Feed and read the child until it ends or reaches a limit; what it said, and which limit."""
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    texts = {"stdout": b"", "stderr": b"", "report": b""}
    names = {child.stdout.fileno(): "stdout", child.stderr.fileno(): "stderr", report: "report"}
    into, sent = child.stdin.fileno(), 0
    os.set_blocking(into, False)
    end = time.monotonic() + limits.seconds
    with selectors.DefaultSelector() as selector:
        for fd in names:
            selector.register(fd, selectors.EVENT_READ)
        selector.register(into, selectors.EVENT_WRITE)
        while set(selector.get_map()) & set(names):
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready and time.monotonic() >= end:
                return texts, "timeout"
            for key, _ in ready:
                if key.fd == into:
                    try:
                        sent += os.write(into, told[sent : sent + 65536])
                    except BrokenPipeError:
                        sent = len(told)
                    if sent >= len(told):
                        selector.unregister(into)
                        child.stdin.close()
                    continue
                part = os.read(key.fd, 65536)
                texts[names[key.fd]] += part
                if not part:
                    selector.unregister(key.fd)
            if len(texts["stdout"]) + len(texts["stderr"]) > limits.output_bytes:
                return texts, "output"
            if len(texts["report"]) > 1 << 20:
                return texts, "output"
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:  # its pipes are shut already
        if time.monotonic() >= end:
            return texts, "timeout"
        time.sleep(0.002)
    return texts, ""


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child and whatever is in its process group; it was not waited for yet, so the number is still its own."""
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _verdict(word: str, texts: dict[str, bytes], ended: str, code: int, tests: int) -> Verdict:
    told: dict[str, tuple[str, str]] = {}
    for line in texts["report"].decode("utf-8", "replace").splitlines():
        said, _, rest = line.partition(" ")
        if said == word:
            step, status, message = (*rest.split(" ", 2), "")[:3]
            told.setdefault(step, (status, re.sub(r"0x[0-9a-fA-F]+", "0x", message)[:300]))
    passed = tuple(told.get(str(k), ("", ""))[0] == "passed" for k in range(tests))
    stdout = texts["stdout"].decode("utf-8", "replace")
    wrong = next((t for t in told.values() if t[0] != "passed"), None)
    if ended:
        return Verdict(ended, passed, f"more than the limit ({ended})", stdout)
    if wrong is not None:
        return Verdict(wrong[0], passed, wrong[1], stdout)
    if "end" in told and code == 0:
        return Verdict("passed", passed, "", stdout)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Verdict("timeout", passed, "more processor time than the limit", stdout)
    if code < 0:
        return Verdict("killed", passed, f"signal {signal.Signals(-code).name}", stdout)
    last = texts["stderr"].decode("utf-8", "replace").strip().splitlines()[-1:]
    return Verdict("exit", passed, f"left early with code {code}{': ' + last[0][:200] if last else ''}", stdout)


# ----------------------------------------------------------------------------------------------------- inside

_CHILD = Path(__file__).with_name("_child.py")
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h."""

_X86_64 = """
read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12 rt_sigaction 13
rt_sigprocmask 14 rt_sigreturn 15 ioctl 16 pread64 17 readv 19 writev 20 access 21 select 23 sched_yield 24 mremap 25
madvise 28 dup 32 nanosleep 35 getpid 39 exit 60 uname 63 getcwd 79 readlink 89 gettimeofday 96 getrusage 98 sysinfo 99
times 100 getuid 102 getgid 104 geteuid 107 getegid 108 getppid 110 sigaltstack 131 gettid 186 time 201 futex 202
sched_getaffinity 204 getdents64 217 clock_gettime 228 clock_getres 229 clock_nanosleep 230 exit_group 231 openat 257
newfstatat 262 readlinkat 267 faccessat 269 pselect6 270 ppoll 271 getrandom 318 statx 332 faccessat2 439
"""
_ARM64 = """
getcwd 17 dup 23 ioctl 29 faccessat 48 openat 56 close 57 getdents64 61 lseek 62 read 63 write 64 readv 65 writev 66
pread64 67 pselect6 72 ppoll 73 readlinkat 78 newfstatat 79 fstat 80 exit 93 exit_group 94 futex 98 nanosleep 101
clock_gettime 113 clock_getres 114 clock_nanosleep 115 sched_getaffinity 123 sched_yield 124 sigaltstack 132
rt_sigaction 134 rt_sigprocmask 135 rt_sigreturn 139 times 153 uname 160 getrusage 165 gettimeofday 169 getpid 172
getppid 173 getuid 174 geteuid 175 getgid 176 getegid 177 gettid 178 sysinfo 179 brk 214 munmap 215 mremap 216 mmap 222
mprotect 226 madvise 233 getrandom 278 statx 291 faccessat2 439
"""


def _table(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


_CALLS = {"x86_64": _table(_X86_64), "aarch64": _table(_ARM64)}
"""Permitted system calls by name: what an interpreter needs to compute, read its own files and print."""
