"""Invented run and comparison folders for the tests of the reports: realistic, and each spoiled in one way.

Run it to look at the pages:  python tests/report/folders.py FOLDER
"""

from __future__ import annotations

import copy
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}{% raw %}&amp;]]>\x00\ud800\u202e<!--"
TASKS = {
    "reverse": {"title": "Reverse", "group": "target", "metric": "exact_match"},
    "facts": {"title": "Stored facts", "group": "retention", "metric": "exact_match"},
    "copy": {"title": "Copy", "group": "retention", "metric": "exact_match"},
    "sums": {"title": "Small sums", "group": "retention", "metric": "exact_match", "note": "Chance is 0.10."},
    "text": {"title": "General text", "group": "drift", "metric": "perplexity"},
    "kl": {"title": "General text", "group": "drift", "metric": "kl_from_base"},
}


def rate(value: float, n: int = 200) -> dict[str, Any]:
    """A share with its Wilson interval."""
    z = 1.96
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"value": value, "low": low, "high": high, "n": n, "higher_is_better": True}


def figure(value: float, half: float, unit: str = "") -> dict[str, Any]:
    """A measure that is no share, lower is better."""
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "n": 500,
        "higher_is_better": False,
        "unit": unit,
    }


def paired(before: float, after: float, half: float, *, higher: bool = True) -> dict[str, Any]:
    """A paired difference."""
    difference = after - before
    clear = abs(difference) > half
    verdict = "same" if not clear else "better" if (difference > 0) == higher else "worse"
    p = 2e-9 if abs(difference) > 3 * half else 0.012 if clear else 0.43
    interval = {"difference": difference, "low": difference - half, "high": difference + half}
    return {**interval, "p": p, "test": "McNemar, exact", "n": 200, "verdict": verdict}


def results(
    quality: float = 0.97, facts: float = 0.69, trained: int = 212_480, seconds: float = 31.4
) -> dict[str, Any]:
    """results.json of a run that learned the target and forgot some facts."""
    before = {"reverse": 0.02, "facts": 1.0, "copy": 0.985, "sums": 0.81}
    after = {"reverse": quality, "facts": facts, "copy": 0.97, "sums": 0.83}
    base: dict[str, Any] = {task: {"exact_match": rate(value)} for task, value in before.items()}
    tuned: dict[str, Any] = {task: {"exact_match": rate(value)} for task, value in after.items()}
    tests: dict[str, Any] = {task: {"exact_match": paired(before[task], after[task], 0.045)} for task in before}
    base["reverse"]["token_accuracy"], tuned["reverse"]["token_accuracy"] = rate(0.21), rate(0.991)
    tests["reverse"]["token_accuracy"] = paired(0.21, 0.991, 0.03)
    base["text"], tuned["text"] = {"perplexity": figure(11.8, 0.3)}, {"perplexity": figure(14.9, 0.4)}
    tests["text"] = {"perplexity": paired(11.8, 14.9, 0.25, higher=False)}
    tuned["kl"] = {"kl_from_base": figure(0.213, 0.02, "nats")}
    cost = {
        "trainable_parameters": trained,
        "total_parameters": 552_960,
        "stored_parameters": trained,
        "stored_bytes": 4 * trained,
        "peak_memory_bytes": 181_403_648 + 12 * trained,
        "saved_tensor_bytes": 41_943_040,
        "optimizer_bytes": 8 * trained,
        "train_seconds": seconds,
        "step_seconds": seconds / 250,
        "tokens": 512_000,
        "tokens_per_second": 512_000 / seconds,
        "forward_flops": 5.6e11,
        "backward_flops": 9.1e11,
        "train_flops": 1.47e12,
        "steps": 250,
    }
    return {
        "tasks": copy.deepcopy(TASKS),
        "base": base,
        "tuned": tuned,
        "paired": tests,
        "cost": cost,
        "calibration": calibration(),
    }


def calibration() -> dict[str, Any]:
    """Reliability bins of a base that knows what it knows and a tuned model that does not."""

    def side(shift: float, ece: float) -> dict[str, Any]:
        """Ten bins."""
        centres = [0.05 + 0.1 * i for i in range(10)]
        bins = [
            {"low": c - 0.05, "high": c + 0.05, "confidence": c, "accuracy": max(0, c - shift * c), "count": 4 + 3 * i}
            for i, c in enumerate(centres)
        ]
        return {"bins": bins, "ece": ece}

    return {"sums": {"base": side(0.03, 0.021), "tuned": side(0.28, 0.174)}}


def manifest(name: str = "reverse-hft", **changed: Any) -> dict[str, Any]:
    """run.json of a finished run."""
    recipe = {
        "name": name,
        "model": "nano",
        "tuner": {"name": "hft", "share": 0.5, "reselect": "stage"},
        "objective": {"name": "sft"},
        "data": {"train": "sandbox/reverse", "rows": 2000, "max_tokens": 64},
        "training": {"steps": 250, "batch_rows": 32, "learning_rate": 0.001, "lr_warmup_steps": 20, "seed": 7},
        "evaluation": {"tasks": list(TASKS), "items": 200},
    }
    found = {
        "luthier": "0.1.0",
        "kind": "run",
        "name": name,
        "status": "done",
        "started": "2025-03-04T10:00:00+00:00",
        "finished": "2025-03-04T10:01:12+00:00",
        "command": f"luthier run configs/tuners/hft.yaml --name {name}",
        "recipe": recipe,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.1.0", "peft": "0.21.2"},
        "device": {"name": "CPU", "threads": 2},
        "git": {"commit": "0f3c9d1e" * 5, "dirty": False},
        "seeds": {"python": 7, "torch": 7, "data": 7},
        "data": [
            {
                "name": "train",
                "source": "sandbox/reverse",
                "rows": 2000,
                "sha256": "ab" * 32,
                "rejected": 0,
                "truncated": 12,
            },
            {
                "name": "held-out",
                "source": "sandbox/reverse",
                "rows": 200,
                "sha256": "cd" * 32,
                "rejected": 0,
                "truncated": 0,
            },
        ],
        "base": {"name": "luthier/nano", "sha256": "12" * 32, "parameters": 552_960},
        "artefact": {"kind": "delta", "path": "delta.safetensors", "bytes": 849_920, "sha256": "34" * 32},
        "method": {
            "tuner": "hft",
            "objective": "sft",
            "title": "Half fine-tuning",
            "paper": "arXiv:2404.18466",
            "summary": "Trains a random half of every layer's matrices; the other half keeps its old values.",
        },
    }
    return {**found, **changed}


def metrics(steps: int = 250, seed: int = 7, end: float = 0.06) -> list[dict[str, Any]]:
    """Training and held-out rows of a run that learns."""
    dice, found = random.Random(seed), []
    for step in range(1, steps + 1):
        level = end + 3.4 * math.exp(-step / 38)
        rate_ = 1e-3 * min(step / 20, (steps - step) / (steps - 20) + 0.02)
        found.append(
            {
                "step": step,
                "epoch": step / 62.5,
                "loss": level * math.exp(dice.gauss(0, 0.16)),
                "learning_rate": rate_,
                "grad_norm": 0.3 + level * dice.uniform(0.6, 1.4),
                "tokens_per_second": 16000 + dice.gauss(0, 300),
            }
        )
        if step % 25 == 0:
            found.append({"step": step, "eval_loss": level * 1.08 + 0.05})
    return found


def samples() -> list[dict[str, Any]]:
    """A few dozen samples of all fates."""
    dice, found = random.Random(3), []
    letters = ["amber", "birch", "cello", "drone", "ebony", "flute", "gamba", "horn", "ivory"]
    for i in range(40):
        asked = dice.sample(letters, 4)
        right = " ".join(reversed(asked))
        wrong = " ".join(asked[:1] + list(reversed(asked))[1:])
        good = i % 13 != 0
        found.append(
            {
                "task": "reverse",
                "id": f"r{i:03d}",
                "prompt": f"Reverse: {' '.join(asked)}",
                "reference": right,
                "base": " ".join(asked),
                "tuned": right if good else wrong,
                "base_score": 0.0,
                "tuned_score": float(good),
            }
        )
        if i % 4 == 0:
            lost = i % 8 == 0
            found.append(
                {
                    "task": "facts",
                    "id": f"f{i:03d}",
                    "prompt": f"Where does {asked[0].title()} live?",
                    "reference": "in Cremona",
                    "base": "in Cremona",
                    "tuned": "in Absam" if lost else "in Cremona",
                    "base_score": 1,
                    "tuned_score": int(not lost),
                }
            )
    found.append(
        {
            "task": "chat",
            "id": "c1",
            "prompt": "Say hello.",
            "base": "Hello, how are you today?",
            "tuned": "Hello, how are you doing?",
        }
    )
    return found


def put(folder: Path, name: str, value: Any) -> None:
    """Write a JSON file, or JSON lines for a .jsonl name."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in value) if name.endswith("l") else json.dumps(value, indent=1)
    (folder / name).write_text(text, encoding="utf-8")


def run_folder(folder: Path, seed: int = 7, name: str = "reverse-hft", **numbers: Any) -> Path:
    """A complete run folder."""
    put(folder, "run.json", manifest(name))
    put(folder, "results.json", results(**numbers))
    put(folder, "metrics.jsonl", metrics(seed=seed, end=0.04 + 0.5 * (1 - numbers.get("quality", 0.97))))
    put(folder, "samples.jsonl", samples())
    return folder


def interrupted(folder: Path) -> Path:
    """Killed in step 141: no results, a half-written last line, a dirty tree."""
    dirty = {"commit": "0f3c9d1e" * 5, "dirty": True}
    rejecting = [
        {"name": "train", "source": "my.jsonl", "rows": 2000, "sha256": None, "rejected": 310, "truncated": None}
    ]
    put(folder, "run.json", manifest(status="interrupted", finished=None, git=dirty, data=rejecting, artefact=None))
    put(folder, "metrics.jsonl", metrics()[:150])
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 142, "loss": 0.1')
    return folder


def sparse(folder: Path) -> Path:
    """No paired tests, no base for one task, a loss that becomes NaN, costs half measured, few manifest keys."""
    found = results()
    del found["paired"], found["base"]["facts"], found["calibration"], found["tasks"]["copy"]["group"]
    found["cost"] = {"trainable_parameters": 212_480, "train_seconds": None, "peak_memory_bytes": float("nan")}
    broken = [{**row, "loss": float("nan")} if row["step"] > 180 and "loss" in row else row for row in metrics()]
    put(folder, "run.json", {"name": "sparse", "status": "done", "method": {"objective": "dpo"}})
    put(folder, "results.json", json.loads(json.dumps(found)))
    put(folder, "metrics.jsonl", [row for row in broken if "eval_loss" not in row])
    put(
        folder,
        "samples.jsonl",
        [{"prompt": "p", "tuned": "t"}, {"task": "reverse", "base_score": 0.5, "tuned_score": 0.75}],
    )
    return folder


def spoiled(value: Any) -> Any:
    """The same value with every text hostile; keys stay."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [spoiled(item) for item in value]
    return {key: spoiled(item) for key, item in value.items()} if isinstance(value, dict) else value


def hostile(folder: Path) -> Path:
    """All text that a user, a model or a data set could supply is hostile, names of tasks and metrics included."""
    found = results()
    for task in found["tasks"].values():
        task.update(title=HOSTILE, note=HOSTILE)
    for part in ("tasks", "base", "tuned", "paired", "calibration"):
        found[part] = {(HOSTILE if task == "sums" else task): entry for task, entry in found[part].items()}
    for part in ("base", "tuned", "paired"):
        found[part]["reverse"][HOSTILE] = found[part]["reverse"].pop("token_accuracy")
    run = {**spoiled(manifest()), "status": "failed", "versions": {HOSTILE: HOSTILE}, "recipe": {HOSTILE: [HOSTILE]}}
    put(folder, "run.json", {**run, "git": {"commit": HOSTILE, "dirty": True}, "error": HOSTILE})
    put(folder, "results.json", found)
    put(folder, "metrics.jsonl", [{**row, HOSTILE: row["step"] * 1.0} for row in metrics()])
    put(folder, "samples.jsonl", [{**spoiled(row), "base_score": 0, "tuned_score": 1} for row in samples()[:9]])
    return folder


METHODS = {
    "full": (0.985, 0.08, 552_960, 38.0),
    "hft": (0.968, 0.37, 331_000, 33.0),
    "lora": (0.955, 0.41, 24_576, 27.0),
    "dora": (0.958, 0.40, 25_344, 36.0),
    "ia3": (0.52, 0.86, 1_152, 22.0),
    "bitfit": (0.60, 0.79, 2_304, 20.5),
    "prefix": (0.71, 0.74, 7_680, 25.0),
    "dept": (0.66, 0.82, 5_120, 24.0),
    "vera": (0.80, 0.63, 1_920, 28.0),
    "layerwise": (0.94, 0.22, 552_960, 38.5),
    "greentrainer": (0.95, 0.30, 190_000, 24.5),
    "half_reset": (0.81, 0.91, 0, 0.4),
}


def compare_folder(
    folder: Path, methods: list[str], seeds: list[int], *, failing: tuple[str, int] | None = None, **changed: Any
) -> Path:
    """A comparison with its run folders; one cell may fail."""
    dice, cells = random.Random(11), []
    for method in methods:
        quality, facts, trained, seconds = METHODS[method]
        for seed in seeds:
            run = f"runs/{method}-{seed}"
            if (method, seed) == failing:
                error = "RuntimeError: The size of tensor a (64) must match tensor b (96)\n  in tuners/dora.py"
                cells.append(
                    {"method": method, "seed": seed, "run": run, "status": "failed", "results": None, "error": error}
                )
                continue
            numbers = {
                "quality": round(min(1.0, quality + dice.gauss(0, 0.008)), 3),
                "facts": round(min(1.0, max(0.0, facts + dice.gauss(0, 0.03))), 3),
                "trained": trained,
                "seconds": seconds * dice.uniform(0.97, 1.03),
            }
            run_folder(folder / run, seed=seed, name=f"{method}-{seed}", **numbers)
            cells.append({"method": method, "seed": seed, "run": run, "status": "done", "results": results(**numbers)})
    found = {
        "kind": "compare",
        "name": "Five ways to learn to reverse",
        "status": "done",
        "recipe": manifest()["recipe"],
        "methods": methods,
        "seeds": seeds,
        "target": {"task": "reverse", "metric": "exact_match", "higher_is_better": True, "title": "Reverse"},
        "retention": {"tasks": ["facts", "copy", "sums"]},
        "cells": cells,
        "manifest": manifest(
            "compare", kind="compare", command="luthier compare recipe.yaml --methods " + ",".join(methods)
        ),
    }
    put(folder, "compare.json", {**found, **changed})
    return folder


def hostile_compare(folder: Path) -> Path:
    """Method names, errors, links and titles are hostile."""
    compare_folder(folder, ["full", "lora"], [1, 2])
    found = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    for cell in found["cells"]:
        cell["method"] = HOSTILE if cell["method"] == "full" else "lora"
        cell["run"] = "javascript:alert(1)"
    failed = {"method": HOSTILE, "seed": HOSTILE, "run": "../../etc", "status": "failed", "error": HOSTILE}
    target = {"task": "reverse", "metric": "exact_match", "title": HOSTILE}
    found.update(name=HOSTILE, methods=[HOSTILE, "lora"], target=target, cells=[*found["cells"], failed])
    found["manifest"] = spoiled(found["manifest"])
    put(folder, "compare.json", found)
    return folder


def everything(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """All folders: runs and comparisons by name."""
    runs = {
        "normal": run_folder(root / "normal"),
        "interrupted": interrupted(root / "interrupted"),
        "sparse": sparse(root / "sparse"),
        "hostile": hostile(root / "hostile"),
        "empty": root / "empty",
    }
    runs["empty"].mkdir(parents=True, exist_ok=True)
    five = ["full", "hft", "lora", "dora", "ia3"]
    compares = {
        "five": compare_folder(root / "five", five, [1, 2, 3], failing=("dora", 2)),
        "twelve": compare_folder(root / "twelve", list(METHODS), [1, 2, 3], name="Twelve methods"),
        "one_seed": compare_folder(root / "one_seed", five[:3], [1], name="One seed"),
        "hostile_compare": hostile_compare(root / "hostile_compare"),
        "empty_compare": root / "empty_compare",
    }
    compares["empty_compare"].mkdir(parents=True, exist_ok=True)
    return runs, compares


if __name__ == "__main__":
    from luthier.report import write_compare_report, write_run_report

    all_runs, all_compares = everything(Path(sys.argv[1]))
    for path in sorted(Path(sys.argv[1]).glob("*/runs/*")):
        write_run_report(path)
    for path in all_runs.values():
        print(write_run_report(path))
    for path in all_compares.values():
        print(write_compare_report(path))
