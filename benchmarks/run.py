"""All benchmarks: each contender in a fresh process, in turns, and a table of ratios. `make bench` runs this.

    python -m benchmarks.run [--quick] [--threads 1 2] [--repeats 3] [--only sft dpo modules ...]

Speed is compared within a repeat, where contenders run one after the other (A B C, A B C, ...): a ratio is the median
over repeats, with the smallest and the largest in brackets. With one thread the clock is the CPU time of the process,
so that other work on the machine counts as little as it can; with more it is the wall, and the load average is noted.
Peak memory is the resident peak of the whole process, imports included.

Before anything is timed, every contender runs a few steps on the same batches in the same order: losses must agree to
1e-3 at each step, or the table is not printed. In the timed runs everyone shuffles (and buckets) in its own way, so
there only the mean over the epoch is comparable; it is in the results file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks._contender import heard

HERE = Path(__file__).parent
AGREE = 1e-3
CONTENDERS = {
    "sft": ("luthier", "transformers", "transformers-grouped", "trl", "trl-grouped", "trl-shipped"),
    "dpo": ("luthier", "luthier-stored", "trl", "trl-precomputed", "trl-shipped"),
}
TARGETS = {("sft", "trl", ""): 4.0, ("sft", "transformers", ""): 1.8, ("dpo", "trl", "stored"): 5.0}
PAIR_TARGETS = {"1": 5.0, "3": 6.0}
"""Of losses of pairs over trl's DPO, by epochs, references stored where a loss has any."""
SIZES = {
    "sft": (12, 8), "dpo": (8, 4), "overhead": (12, 8), "packing": (2, 8), "decoding": (48, 16),
    "layer_cache": (6, 8), "modules": (16, 4), "preferences": (6, 4), "rollouts": (2, 4), "distillation": (3, 8),
    "edits": (17, 1),
}  # fmt: skip
"""(optimiser steps, examples a step) of each benchmark; of decoding (new tokens, rows); of edits the layers of a checkpoint."""


def main() -> None:
    told = _arguments()
    found: dict[str, Any] = {"machine": machine(), "sizes": SIZES, "threads": {}}
    if told.add:
        found = json.loads(told.out.read_text(encoding="utf-8"))
        found["sizes"] = {**SIZES, **found["sizes"], **{name: SIZES[name] for name in told.only}}
    for threads in told.threads:
        part = found["threads"].setdefault(str(threads), {})
        for name in told.only:
            if name in CONTENDERS:
                part[name] = compare(name, threads, told, part.get(name))
            else:
                part[name] = single(name, threads, told)
            if not told.quick:
                told.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps: does it run, not how fast")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(SIZES))
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--add", action="store_true", help="more repeats beside those that the results file holds")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    told = parser.parse_args()
    if told.quick:
        told.threads, told.repeats = told.threads[:1], 1
    return told


# ----------------------------------------------------------------------------------------------- processes


def process(name: str, contender: str, steps: int, batch: int, threads: int, told: Any, *more: str) -> dict[str, Any]:
    """One contender in a fresh interpreter. Raises SystemExit with what it printed if it gives no result."""
    if told.quick:
        steps, more = min(steps, 4), (*more, "--small")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", contender, "--folder", folder,
            "--steps", str(steps), "--batch", str(batch), "--threads", str(threads), *dict.fromkeys(more),
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=HERE.parent, env=_environment(threads, folder), capture_output=True, text=True, check=False
        )
    result = heard(done, f"{name} {contender}")
    print(f"  {name} {contender} {threads} thread(s): {_short(result)}", file=sys.stderr, flush=True)
    return result


def _environment(threads: int, folder: str) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "LUTHIER_CACHE": folder, "HF_HOME": folder}
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **own, **quiet}


def _short(result: dict[str, Any]) -> str:
    if "seconds" in result:
        return f"{result['seconds']:.1f} s, {result['cpu_seconds']:.1f} CPU s, {result['peak_mb']:.0f} MB"
    return "done"


def compare(name: str, threads: int, told: Any, before: dict[str, Any] | None) -> dict[str, Any]:
    """Equality first, then the timed repeats."""
    steps, batch = SIZES[name]
    names = [c for c in CONTENDERS[name] if c not in told.skip]
    equal = before["equal"] if before else {}
    for other in [c for c in names if c not in equal]:
        equal[other] = process(name, other, 3, 2, threads, told, "--equal")["losses"]
        apart = [abs(a - b) for a, b in zip(equal["luthier"], equal[other], strict=True)]
        if max(apart) > AGREE:
            raise SystemExit(f"{name}: {other} has other losses on the same batches: {json.dumps(equal)}")
    repeats: list[dict[str, Any]] = before["repeats"] if before else []
    for _ in range(told.repeats):
        load = os.getloadavg()[0]
        repeats.append({c: process(name, c, steps, batch, threads, told) for c in names} | {"load": load})
    return {"equal": equal, "repeats": repeats, **_summaries(name, repeats, threads)}


def single(name: str, threads: int, told: Any) -> Any:
    steps, batch = SIZES[name]
    if name == "overhead":
        rounds = [process(name, "both", steps, batch, threads, told) for _ in range(told.repeats)]
        return {"15M": rounds, "1M": [process(name, "both", 2 * steps, batch, threads, told, "--small")]}
    return process(name, "both", steps, batch, threads, told)


def _summaries(name: str, repeats: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """Against luthier as it is, and for preference tuning against luthier with stored references."""
    out = {"summary": summary(CONTENDERS[name], repeats, threads, "luthier")}
    if name == "dpo":
        out["summary_stored"] = summary(CONTENDERS[name], repeats, threads, "luthier-stored")
    return out


def summary(names: tuple[str, ...], repeats: list[dict[str, Any]], threads: int, ours: str) -> dict[str, Any]:
    """Per contender: rows a second and peak memory (medians), and our speed over its (median, least, most)."""
    clock = "cpu_seconds" if threads == 1 else "seconds"
    out = {}
    for name in names:
        took = [(r[name], r[ours]) for r in repeats if name in r and ours in r]
        if not took:
            continue
        ratios = [a[clock] / b[clock] for a, b in took]
        out[name] = {
            "repeats": len(took),
            "rows_per_second": statistics.median(a["rows"] / a[clock] for a, _ in took),
            "peak_mb": statistics.median(a["peak_mb"] for a, _ in took),
            "speedup": [statistics.median(ratios), min(ratios), max(ratios)],
            "memory": statistics.median(a["peak_mb"] / b["peak_mb"] for a, b in took),
            "loss": statistics.median(a["loss"] for a, _ in took),
        }
    return out


# ----------------------------------------------------------------------------------------------------- words


def machine() -> dict[str, Any]:
    """The machine and the versions, as far as a reader needs them."""
    names = ("luthier", "torch", "transformers", "trl", "peft", "accelerate")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {n: metadata.version(n) for n in names},
        "date": time.strftime("%Y-%m-%d"),
        "load_at_start": os.getloadavg()[0],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = [line.partition(":") for line in info.read_text().splitlines()]
    told = {key.strip(): value.strip() for key, _, value in lines}
    return f"{told.get('model name', platform.machine())} (family {told.get('cpu family')}, model {told.get('model')})"


def table(found: dict[str, Any]) -> str:
    """Markdown: one row a comparison, one column a number of threads."""
    m = found["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    threads = list(found["threads"])
    lines = [
        f"{m['processor']}, {m['cores']} cores, {m['memory_gb']} GB, Python {m['python']}, {versions}; {m['date']}.",
        "",
        "| luthier against | "
        + " | ".join(f"{t} thread{'s' * (t != '1')}" for t in threads)
        + " | our peak memory | target |",
        "|---" * (len(threads) + 3) + "|",
    ]
    for name, stored in (("sft", ""), ("dpo", ""), ("dpo", "stored")):
        key = f"summary_{stored}" if stored else "summary"
        parts = [found["threads"][t].get(name, {}).get(key, {}) for t in threads]
        others = [c for c in CONTENDERS[name] if not c.startswith("luthier") and any(c in p for p in parts)]
        lines += [_comparison(name, other, stored, parts) for other in others]
    lines += [*_overheads(found["threads"]), *_preferences(found["threads"]), *_rounds(found["threads"])]
    lines += [*_distillation(found["threads"]), *_edits(found["threads"]), *_decoding(found["threads"])]
    lines += [*_modules(found["threads"]), *_layer_cache(found["threads"])]
    return "\n".join(lines)


def _comparison(name: str, other: str, stored: str, parts: list[dict[str, Any]]) -> str:
    cells = ["" for _ in parts]
    for i, part in enumerate(parts):
        if other in part:
            median, least, most = part[other]["speedup"]
            cells[i] = f"{median:.2f}x ({least:.2f} to {most:.2f}, n = {part[other]['repeats']})"
    memory = statistics.median(1 / p[other]["memory"] for p in parts if other in p)
    found = [p[other]["speedup"][0] for p in parts if other in p]
    target = _target(TARGETS.get((name, other, stored)), found)
    title = f"{name}: {other}" + (", our references stored" if stored else "")
    return f"| {title} | {' | '.join(cells)} | {memory:.2f}x | {target} |"


def _target(least: float | None, found: list[float]) -> str:
    """What was to be reached, and whether it was not."""
    return "" if least is None else f"{least:g}x" + ", missed" * (min(found) < least)


def _overheads(threads: dict[str, Any]) -> list[str]:
    told = [part["overhead"] for part in threads.values() if "overhead" in part]
    lines = []
    for size in ("15M", "1M") if told else ():
        cells = []
        for part in told:
            found = [r["overhead"] for r in part[size]]
            cells.append(f"{statistics.median(found):+.1%} ({min(found):+.1%} to {max(found):+.1%})")
        lines.append(f"| loop over bare loop, {size} parameters | {' | '.join(cells)} | | under 5% |")
    return lines


def _spread(told: list[float]) -> str:
    """Median, least and most; one turn is one number."""
    median, least, most = told
    return f"{median:.2f}x" if least == most else f"{median:.2f}x ({least:.2f} to {most:.2f})"


def _preferences(threads: dict[str, Any]) -> list[str]:
    """One line a loss and number of epochs: over trl's trainer of that loss, and over its DPO."""
    parts = [{r["loss"]: r for r in part.get("preferences", {}).get("rows", ())} for part in threads.values()]
    lines = []
    for loss in dict.fromkeys(loss for part in parts for loss in part):
        for key in dict.fromkeys(k for part in parts for k in part.get(loss, {}) if k != "loss"):
            _, n, *stored = key.split("_")
            found, cells = [], ["" for _ in parts]
            for i, part in enumerate(parts):
                if loss in part and "dpo" in part:
                    found.append(part["dpo"][f"epochs_{n}"]["trl_seconds"] / part[loss][key]["seconds"])
                    cells[i] = f"{_spread(part[loss][key]['speedup'])}; {found[-1]:.2f}x its DPO"
            title = f"{loss}, {n} epoch{'s' * (n != '1')}{', our references stored' * bool(stored)}: trl"
            counts = loss != "kto" and (stored or f"{key}_stored" not in parts[0].get(loss, {}))
            target = _target(PAIR_TARGETS[n] if counts else None, found)
            lines.append(f"| {title} | {' | '.join(cells)} | | {target} |")
    return lines


def _rounds(threads: dict[str, Any]) -> list[str]:
    """Answers a second over trl's."""
    rounds = [part.get("rollouts") for part in threads.values()]
    cells = [f"{_spread(r['speedup'])}, {r['per_second']:.1f} a second" if r else "" for r in rounds]
    return [f"| grpo, answers a second: trl | {' | '.join(cells)} | | |"] if any(rounds) else []


def _distillation(threads: dict[str, Any]) -> list[str]:
    """One line a number of epochs."""
    parts = [{r["epochs"]: r for r in part.get("distillation", {}).get("rows", ())} for part in threads.values()]
    lines = []
    for n in dict.fromkeys(n for part in parts for n in part):
        cells = [f"{_spread(p[n]['speedup'])}; {_spread(p[n]['kept'])} once stored" if n in p else "" for p in parts]
        lines.append(f"| stored teacher against a live one, {n} epoch{'s' * (n > 1)} | {' | '.join(cells)} | | |")
    return lines


def _edits(threads: dict[str, Any]) -> list[str]:
    """Time of an edit over that of reading its inputs and writing its output once, and memory beyond that of the copy."""
    parts = [{r["edit"]: r for r in part.get("edits", {}).get("rows", ())} for part in threads.values()]
    lines = []
    for name in dict.fromkeys(n for part in parts for n in part):
        cells = [_spread(p[name]["ratio"]) if name in p else "" for p in parts]
        found = [p[name] for p in parts if name in p]
        tensors = statistics.median(r["tensors"] for r in found)
        missed = ", missed" * (max(r["ratio"][0] for r in found) > 1.5)
        target = f"at most 1.5x{missed}" if name == "merge" else ""
        lines.append(
            f"| edit {name}: time over a copy | {' | '.join(cells)} | + {tensors:.1f} largest tensors | {target} |"
        )
    return lines


def _decoding(threads: dict[str, Any]) -> list[str]:
    """One line a number of rows: three models at one step, then drafts."""
    told = [part["decoding"]["rows"] if "decoding" in part else [] for part in threads.values()]
    lines = []
    for i in range(max(map(len, told), default=0)):
        some = [rows[i] if rows else None for rows in told]
        n = next(r["rows"] for r in some if r is not None)
        kinds = {
            f"three models against the sum of their parts, {n} row{'s' * (n != 1)}": lambda r: f"{r['share']:.2f}",
            f"drafts against none, greedy, {n} row{'s' * (n != 1)}": lambda r: _drafts(r["greedy"]),
            f"drafts against none, drawn, {n} row{'s' * (n != 1)}": lambda r: _drafts(r["drawn"]),
        }
        for j, (title, cell) in enumerate(kinds.items()):
            cells = ["" if r is None else cell(r) for r in some]
            lines.append(f"| decoding: {title} | {' | '.join(cells)} | | {'' if j else 'at least 0.9'} |")
    return lines


def _drafts(told: dict[str, float]) -> str:
    return f"{told['speedup']:.2f}x ({told['accepted']:.0%} accepted, {told['tokens_per_read']:.1f} tokens a forward)"


def _modules(threads: dict[str, Any]) -> list[str]:
    """Step time of modules over LoRA's, and of parts over full's, a column a number of threads."""
    told = {t: part["modules"] for t, part in threads.items() if "modules" in part}
    lines: list[str] = []
    for key, base, what in (("modules", "LoRA", "as many parameters"), ("parts", "full fine-tuning", "the same model")):
        head = [
            f"step time over {base}, {what}",
            *(f"{t} thread{'s' * (t != '1')}" for t in told),
            "operations",
            "trained",
        ]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"] if told else []
        rows = [part[key][1:] for part in told.values()]
        for same in zip(*rows, strict=True):
            cells = ["{:.2f} ({:.2f} to {:.2f})".format(*r["ratio"]) for r in same]
            extra = [
                f"; choosing costs {r['choice_steps']:.1f} steps once" if r.get("choice_steps") else "" for r in same
            ]
            cells = [a + b for a, b in zip(cells, extra, strict=True)]
            lines.append(
                f"| {same[0]['tuner']} | {' | '.join(cells)} | {same[0]['flops_ratio']:.2f} | {same[0]['trained']:,} |"
            )
    return lines


def _layer_cache(threads: dict[str, Any]) -> list[str]:
    """Step time without kept layers over that with them."""
    lines: list[str] = []
    for t, part in threads.items():
        for row in part.get("layer_cache", {}).get("rows", ()):
            title = f"kept layers, {row['moves']} moves, {t} thread{'s' * (t != '1')}"
            ratios = f"{row['ratio']:.2f}x (first epoch {row['first_epoch_ratio']:.2f}x)"
            lines.append(f"| {title} | {ratios} | {row['flops_ratio']:.2f}x fewer operations |")
    return ["", "| layer cache | steps faster | |", "|---|---|---|", *lines] if lines else []


if __name__ == "__main__":
    main()
