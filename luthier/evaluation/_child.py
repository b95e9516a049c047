"""The inside of `_runner.py`: a script that gives up its rights, then runs a program and its tests.

It is started as a file of its own (python -P -s -S), reads what to do from its standard input, and reports on the file
descriptor that it was given: lines "word step status message", where a step is "program", the number of a test, or "end".
"""

import ast
import builtins
import contextlib
import ctypes
import gc
import json
import os
import random
import resource
import struct
import sys

ERRNO, KILL, ALLOW = 0x00050000 | 1, 0x80000000, 0x7FFF0000  # EPERM; SECCOMP_RET_*
LOAD, EQUAL, ABOVE, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF instructions
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FLAGS = {"open": 1, "openat": 2}  # which argument holds the flags
FORBIDDEN = ("ctypes", "_ctypes", "resource", "subprocess", "socket.", "os.", "shutil.", "signal.", "fcntl.", "gc.")


def limit(told):
    """rlimits: processor time, address space, no core, no file, few descriptors."""
    seconds, memory = told["cpu_seconds"], told["memory_mb"] << 20
    for what, value in (
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_STACK, 8 << 20),
    ):  # fmt: skip
        resource.setrlimit(what, (value, value))


def confine(calls, arch):
    """Only `calls` from here on; opening a file only for reading. It cannot be undone."""
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    code += [(ABOVE, 0, 1, 0x40000000), (RETURN, 0, 0, ERRNO)]  # a second table of calls on x86-64
    for name, number in calls.items():
        if name in FLAGS:
            flags = 16 + 8 * FLAGS[name]
            code += [(EQUAL, 0, 4, number), (LOAD, 0, 0, flags), (ANY_BIT, 0, 1, WRITES), (RETURN, 0, 0, ERRNO)]
            code += [(RETURN, 0, 0, ALLOW)]
        else:
            code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, ERRNO))
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(packed)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):  # no new privileges; filter
        raise OSError(ctypes.get_errno(), "prctl")


def guard():
    """What the kernel's list leaves open: reading files that are not Python's, and modules that reach around it."""
    roots = tuple({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))})
    realpath, fspath = os.path.realpath, os.fspath

    def hook(event, args):
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = os.fsdecode(fspath(args[0]))
            if not realpath(path).startswith(roots) and path not in ("/dev/null", "/dev/urandom"):
                raise PermissionError(1, "programs may not open this file", path)
        elif event == "import" and args[0] in ("ctypes", "_ctypes", "resource", "_posixsubprocess"):
            raise ImportError(f"programs may not import {args[0]}")
        elif event.startswith(FORBIDDEN) and event not in ("os.listdir", "os.scandir", "os.putenv", "os.unsetenv"):
            raise PermissionError(1, f"programs may not do this: Permission denied ({event})")

    sys.addaudithook(hook)


def attempt(text, names, what):
    """(status, message) of running `text`."""
    try:
        tree = ast.parse(text)
        code = compile(tree, what, "exec")
    except (SyntaxError, ValueError, RecursionError) as error:
        return "syntax", f"{type(error).__name__}: {getattr(error, 'msg', error)}"
    except MemoryError:
        return "memory", "MemoryError"
    try:
        exec(code, names)
    except AssertionError as error:
        return "failed", f"AssertionError: {error}"
    except MemoryError:
        return "memory", "MemoryError"
    except SystemExit as error:
        return "exit", f"SystemExit: {error.code}"
    except BaseException as error:
        return "error", describe(error)
    return "passed", ""


def describe(error):
    """Type and text; a text that cannot be made is left out."""
    with contextlib.suppress(BaseException):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


def main():
    told = json.loads(sys.stdin.buffer.read())
    word, report = told.pop("word"), int(sys.argv[1])
    sys.argv[:] = ["program"]

    def say(step, status, message=""):
        line = " ".join(f"{word} {step} {status} {message}".split())
        os.write(report, (line[:1000] + "\n").encode("utf-8", "replace"))

    limit(told)
    confine(told["calls"], told["arch"])
    for name in ("ctypes", "_ctypes", "resource"):
        sys.modules.pop(name, None)
    for name in ("ctypes", "resource"):
        globals().pop(name, None)
    guard()
    random.seed(0)
    gc.collect()
    names = {"__name__": "__main__", "__builtins__": builtins}
    status, message = attempt(told["program"], names, "program")
    say("program", status, message)
    if status == "passed":
        for k, test in enumerate(told["tests"]):
            say(k, *attempt(test, names, f"test {k}"))
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    say("end", "passed")
    os._exit(0)


if __name__ == "__main__":
    main()
