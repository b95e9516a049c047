"""Run folders: manifest, metrics, checkpoints. What is written is whole or absent, at any moment of a crash.

    <run>/run.json          manifest: recipe, versions, hashes of data and weights, seeds, device, git commit
    <run>/recipe.yaml       the resolved recipe
    <run>/metrics.jsonl     one line per logged step
    <run>/checkpoint-<n>/   state after optimiser step n
    <run>/results.json      base, tuned, paired, cost;  samples.jsonl;  report.html
    <run>/base.json, tuned.json     statistics of every item, before and after
    <run>/model, adapter or delta   the tuned model

Every file is written under a temporary name, flushed to disk and renamed; folders likewise. A full disk or a kill in
the middle leaves a temporary that the next run removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.core.method import LuthierError

CHECKPOINT = "checkpoint-"
TEMPORARY = ".part-"


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=True) + "\n")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


@contextmanager
def or_refuse(path: Path) -> Iterator[None]:
    """An error of the file system inside is one line about `path`."""
    try:
        yield
    except OSError as error:
        raise LuthierError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is untouched"
        ) from error


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary file)` fill a file, then put it in the place of `path` in one step."""
    part = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with or_refuse(path):
            write(part)
            _flush(part)
            os.replace(part, path)
    except LuthierError:
        with suppress(OSError):
            part.unlink()
        raise
    _flush_folder(path.parent)


def replaceable(path: Path) -> bool:
    """Whether nothing is lost by writing a model folder here: nothing, an empty folder, or a model that was made here."""
    marks = ("edit.json", "merge_check.json")
    return not path.exists() or (
        path.is_dir() and (not any(path.iterdir()) or any((path / m).is_file() for m in marks))
    )


def write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary folder)` fill a folder, then put it in the place of `path` in one step."""
    part = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with or_refuse(path):
            part.mkdir(parents=True)
            write(part)
            for file in part.rglob("*"):
                if file.is_file():
                    _flush(file)
            if path.exists():
                old = path.with_name(f"{TEMPORARY}old-{os.getpid()}-{path.name}")
                os.replace(path, old)
                os.replace(part, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _flush_folder(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    with suppress(OSError):
        _flush(path)


class RunFolder:
    """One run on disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def create(self, manifest: dict[str, Any]) -> None:
        """Make the folder and its manifest. Raises LuthierError if another run is there, or it cannot be written."""
        self.must_be_free()
        with or_refuse(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.write_manifest(manifest)

    def must_be_free(self) -> None:
        """Raises LuthierError if a run is here."""
        if (self.path / "run.json").exists():
            raise LuthierError(
                f"{self.path}: a run is here already: continue it with --resume, or choose another output_dir"
            )

    @property
    def manifest(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "run.json").read_text())
        except FileNotFoundError:
            raise LuthierError(f"{self.path}: no run.json: this is not a run folder") from None

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_json(self.path / "run.json", manifest)

    def update(self, **changes: Any) -> None:
        self.write_manifest({**self.manifest, **changes})

    # metrics ------------------------------------------------------------------------------------------

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, row: dict[str, Any]) -> None:
        with self.metrics_file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Logged rows; a line torn by a crash is left out."""
        rows = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step` (a resumed run writes it again)."""
        write_lines(self.metrics_file, [r for r in self.metrics() if r.get("step", 0) <= step])

    # checkpoints --------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = [p for p in self.path.glob(f"{CHECKPOINT}*") if (p / "trainer_state.json").exists()]
        return sorted(found, key=lambda p: int(p.name.removeprefix(CHECKPOINT)))

    def last_checkpoint(self) -> Path | None:
        found = self.checkpoints()
        return found[-1] if found else None

    def save_checkpoint(self, step: int, write: Callable[[Path], Any]) -> Path:
        path = self.path / f"{CHECKPOINT}{step}"
        write_folder(path, write)
        return path

    def rotate(self, keep: int | None, best: str | None) -> None:
        """Delete the oldest checkpoints beyond `keep`; the best and the last stay."""
        if keep is None:
            return
        found = self.checkpoints()
        for old in found[: max(0, len(found) - max(keep, 1))]:
            if old.name != best:
                shutil.rmtree(old)

    def sweep(self) -> None:
        """Remove what a crash left half-written."""
        for part in self.path.glob(f"{TEMPORARY}*"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()


# ------------------------------------------------------------------------------------------------ manifest


def hash_files(path: Path, pattern: str = "*.safetensors") -> str:
    """sha256 over the named files of a folder (names and contents), or over one file."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob(pattern)):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def hash_tensors(state: Iterable[tuple[str, Any]]) -> str:
    """sha256 over named tensors."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state, key=lambda kv: kv[0]):
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    names = ("luthier", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")
    out = {"python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out


def provenance() -> dict[str, Any]:
    """What every manifest tells of its making, from now on."""
    import luthier

    return {
        "luthier": luthier.__version__, "started": now(), "finished": None, "command": command_line(),
        "versions": versions(), "device": device(), "git": git(),
    }  # fmt: skip


def device() -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"name": name, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "system": platform.system()}


def git() -> dict[str, Any]:
    """Commit of the working directory's repository, if it is one."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--untracked-files=no")) if commit else None}


def command_line() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start
