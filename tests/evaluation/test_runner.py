"""The runner: what a generated program tries, and what becomes of it. Every case is bounded and ends by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.evaluation import _runner
from luthier.evaluation._runner import RunLimits, run

LIMITS = RunLimits(cpu_seconds=1, seconds=6.0, memory_mb=128)
TARGET = Path("/tmp/luthier-runner-must-not-write-this")  # the same in every process: it is part of test names

if _runner.unavailable():
    pytest.skip(f"programs cannot be run here: {_runner.unavailable()}", allow_module_level=True)


def test_tests_are_told_apart() -> None:
    v = run("def f(x):\n return x + 1", ["assert f(1) == 2", "assert f(1) == 3, 'no'", "f('a')"], LIMITS)
    assert (v.status, v.passed, v.message) == ("failed", (True, False, False), "AssertionError: no")
    assert run("def f(x):\n return x + 1", ["assert f(1) == 2"], LIMITS).ok


def test_verdicts_repeat() -> None:
    program = "import random\nprint(random.random(), hash('a'), [].__class__)\nraise KeyError(object())"
    first, second = run(program, (), LIMITS), run(program, (), LIMITS)
    assert first == second
    assert first.status == "error" and first.stdout


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("while True: pass", "timeout"),
        ("x = [0]\nwhile True: x = x + x", "memory"),
        ("bytearray(10 ** 10)", "memory"),
        ("while True: print('x' * 1000)", "output"),
        ("def f(:", "syntax"),
        ("(" * 3000, "syntax"),
        ("import sys; sys.exit(0)", "exit"),
        ("import os; os._exit(0)", "exit"),
        ("def f(): f()\nf()", "error"),
        ("1 / 0", "error"),
    ],
)
def test_statuses(program: str, status: str) -> None:
    began = time.monotonic()
    v = run(program, ["assert True"], LIMITS)
    assert (v.status, v.ok) == (status, False)
    assert time.monotonic() - began < 30  # bounded; how fast is not tested


def test_a_sleeper_is_woken() -> None:
    began = time.monotonic()
    assert run("import time; time.sleep(60)", (), RunLimits(seconds=0.5)).status == "timeout"
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "import os; os.system('sleep 60')",
        "import threading\nwhile True: threading.Thread(target=print).start()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        f"open('{TARGET}', 'w').write('x')",
        f"import os; os.mkdir('{TARGET}')",
        f"import os; os.mkfifo('{TARGET}')",
        f"import pathlib; pathlib.Path('{TARGET}').touch()",
        "open('/etc/passwd').read()",
        "import os; os.kill(1, 9)",
        "import ctypes",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
    ],
)
def test_what_is_not_allowed_is_an_error_in_the_program(program: str) -> None:
    began = time.monotonic()
    v = run(program, (), LIMITS)
    assert v.status == "error", v
    assert time.monotonic() - began < 30  # bounded; how fast is not tested
    assert not TARGET.exists()


def test_catching_every_error_does_not_help() -> None:
    program = f"""
import os
while True:
    for attempt in (os.fork, lambda: open('{TARGET}', 'w'), lambda: bytearray(10 ** 10)):
        try:
            attempt()
        except BaseException:
            pass
"""
    assert run(program, ["assert True"], LIMITS).status == "timeout"
    assert not TARGET.exists()


def test_the_kernel_alone_holds_it_back() -> None:
    """Without the audit hook: the filter of system calls by itself."""
    told = {"calls": _runner._CALLS[os.uname().machine], "arch": _runner._ARCHITECTURES[os.uname().machine]}
    code = f"""
import json, os, signal, socket, sys
sys.path.insert(0, {str(_runner._CHILD.parent)!r})
import _child
_child.confine(**json.loads({json.dumps(json.dumps(told))}))
for attempt in (
    os.fork, os.pipe, socket.socket, lambda: os.execv("/bin/true", ["true"]), lambda: os.kill(os.getppid(), 0),
    lambda: os.open("{TARGET}", os.O_CREAT | os.O_WRONLY), lambda: os.open("{TARGET}", os.O_RDWR),
    lambda: os.mkdir("{TARGET}"), lambda: os.unlink("{TARGET}"), lambda: os.chmod("/", 0o755), lambda: os.setpriority(0, 0, 1),
):
    try:
        attempt()
    except PermissionError:
        continue
    print("allowed")
print(len(open(os.__file__).read()) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"], done.stderr
    assert not TARGET.exists()


def test_a_report_without_the_word_does_not_count() -> None:
    program = """
import os
for fd in range(3, 64):
    for text in ("0 passed", "word 0 passed", "end passed"):
        try:
            os.write(fd, (text + chr(10)).encode())
        except OSError:
            pass
os._exit(0)
"""
    v = run(program, ["assert False"], LIMITS)
    assert (v.status, v.passed) == ("exit", (False,))


def test_nothing_is_left_running() -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())

    before, files = children(), len(os.listdir("/proc/self/fd"))
    for program in ("while True: pass", "1", "import time; time.sleep(60)"):
        run(program, (), RunLimits(cpu_seconds=1, seconds=1.5))
    assert children() <= before
    assert len(os.listdir("/proc/self/fd")) == files


def test_where_the_kernel_cannot_be_told_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core.method import Refusal

    _runner.unavailable.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Refusal, match="not run here"):
        run("1")
    _runner.unavailable.cache_clear()
