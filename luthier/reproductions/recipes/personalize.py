"""Card 21 on the sandbox: one generic writer of tests, four ways of making it a project's own.

The base is tuned once on functions and tests of twenty projects. Then `personalize` runs with four other projects, and what
is judged is what it writes: its table, its cross-project matrix and its cost sheet. Seeds change the split into files, the
order of the rows and the draw of the prefix.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import luthier
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread

PROJECTS = ("harbour", "bakery", "cinema", "garden")
SCHEMES: dict[str, dict[str, Any]] = {
    "custom": {"train.learning_rate": 3e-3},
    "embeddings_output": {"train.learning_rate": 1.5e-2},
    "last_block": {"train.learning_rate": 5e-3},
    "prefix": {"train.learning_rate": 1.5e-1},
}
STOP = {"max_new_tokens": 90, "stop": ["\n\n"]}
COSTS = ("stored_bytes", "step_flops", "train_flops", "trainable_parameters")
LIKENESS = ("bleu", "exact_match")
STYLE = ("abstract_match", "abstract_bleu", "own_assertions", "plausible")


@cache
def _base(folder: tempfile.TemporaryDirectory[str], steps: int, rate: float) -> str:
    """nano-1m after the task, with projects that are never personalised."""
    recipe = {
        "model": "nano-1m", "data": {"train": "sandbox:projects?part=generic&n=4000"}, "output_dir": f"{folder.name}/generic",
        "train": {
            "max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": rate, "lr_scheduler_type": "cosine",
            "logging_steps": 100, "save_strategy": "no",
        },
        "evaluate": {"drift": False},
    }  # fmt: skip
    return str(luthier.run(recipe, quiet=True).folder)


class Personalisation(Experiment):
    scope: ClassVar[str] = "this size"
    setup = """nano-1m, tuned once on 4,000 functions with tests of 20 projects (600 steps of 8 rows, AdamW at 3e-3, cosine), then
    personalised for 4 others by each scheme: 60 steps of 8 rows, best of four looks at validation rows, split by file, without
    near-duplicates. Rates follow the validation loss of one project in a pilot with seed 0 (a base of 300 steps, functions of up
    to three steps, 100 steps of 8 rows): custom 2e-3 0.092, 4e-3 0.085; embeddings and output 1e-2 0.126, 2e-2 0.109; last
    block 3e-3 0.678, 6e-3 0.662; prefix 5e-2 3.18, 1.5e-1 1.38."""
    base_steps: ClassVar[int] = 600
    base_rate: ClassVar[float] = 3e-3
    steps: ClassVar[int] = 60
    rows: ClassVar[int] = 900
    judged: ClassVar[int] = 24

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="luthier-personalize-")

    def measure(self, seed: int) -> Row:
        done = luthier.run(self.recipe(seed), quiet=True)
        told = json.loads((done.folder / "personalize.json").read_text(encoding="utf-8"))
        return self.row(told)

    def recipe(self, seed: int) -> dict[str, Any]:
        return {
            "model": _base(self.folder, self.base_steps, self.base_rate), "seed": seed,
            "data": {"train": f"sandbox:projects?part=personal&n={self.rows}"},
            "procedure": {"name": "personalize", "projects": list(PROJECTS), "val_size": 0.15, "test_size": 0.15},
            "train": {
                "max_steps": self.steps, "per_device_train_batch_size": 8, "eval_strategy": "steps",
                "eval_steps": self.steps // 4, "logging_steps": 20,
            },
            "evaluate": {
                "drift": False, "limit": self.judged,
                "tasks": [
                    {"name": "likeness", "scorer": "code_similarity", **STOP},
                    {"name": "style", "scorer": "code_style", **STOP},
                ],
            },
            "compare": {"methods": SCHEMES}, "output_dir": str(Path(self.folder.name) / f"seed{seed}"),
        }  # fmt: skip

    def row(self, told: dict[str, Any]) -> Row:
        """Means over projects; `worst_ratio` is of the project that gained least."""
        out: Row = {}
        for row in told["table"]:
            for task, metrics in (("likeness", LIKENESS), ("style", STYLE), ("perplexity", ("perplexity",))):
                if row["task"] == task and row["metric"] in metrics:
                    for side, who in (("base", "base"), ("tuned", row["scheme"])):
                        known = [v or 0.0 for v in row[side]]  # nothing of the kind was said: no share of it
                        out[f"{who}_{row['metric']}"] = sum(known) / len(known)
        for row in told["costs"]:
            scheme, matrix = row["scheme"], told["matrix"][row["scheme"]]
            out |= {f"{scheme}_{k}": float(row[k]) for k in (*COSTS, "own_ratio", "other_ratio")}
            out[f"{scheme}_worst_ratio"] = max(matrix[i][i] for i in range(len(matrix)))
            columns = list(zip(*matrix, strict=True))  # the test rows of one project, read with every delta
            own_best = [min(column) == column[j] for j, column in enumerate(columns)]
            out[f"{scheme}_diagonal_best"] = sum(own_best) / len(own_best)
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        def each(key: str, names: tuple[str, ...] = tuple(SCHEMES)) -> str:
            return ", ".join(f"{name} {spread(rows, f'{name}_{key}')}" for name in names)

        def of(key: str) -> dict[str, float]:
            return {name: mean(rows, f"{name}_{key}") for name in SCHEMES}

        bleu, base = of("bleu"), mean(rows, "base_bleu")
        others, stored, step = of("other_ratio"), of("stored_bytes"), of("step_flops")
        light = ("embeddings_output", "last_block")
        harm = sorted(others, key=lambda name: -others[name])[:2]
        kib = ", ".join(f"{name} {stored[name] / 1024:,.0f}" for name in SCHEMES)
        gflop = ", ".join(f"{name} {step[name] / 1e9:.2f}" for name in SCHEMES)
        return [
            Claim(
                "every scheme lowers the perplexity of every project's tests, custom by 30 % at least",
                f"perplexity left, of the base's: {each('own_ratio')}",
                all(r[f"{name}_worst_ratio"] < 1 for r in rows for name in SCHEMES)
                and max(r["custom_worst_ratio"] for r in rows) <= 0.7,
            ),
            Claim(
                "in likeness to the project's tests (BLEU-4): custom, then the two lightweight schemes, prefix, base",
                f"{each('bleu')}, base {spread(rows, 'base_bleu')}",
                bleu["custom"] >= max(bleu[n] for n in light) and min(bleu[n] for n in light) > bleu["prefix"] >= base,
            ),
            Claim(
                "exact and abstract match keep that order",
                f"exact: {each('exact_match')}; abstract: {each('abstract_match')}",
                all(
                    m["custom"] >= max(m[n] for n in light) and min(m[n] for n in light) >= m["prefix"]
                    for m in (of("exact_match"), of("abstract_match"))
                ),
                central=False,
            ),
            Claim(
                "on the tests of other projects custom and embeddings_output lose most",
                f"perplexity on others, of the base's: {each('other_ratio')}",
                set(harm) == {"custom", "embeddings_output"},
            ),
            Claim(
                "a project's tests are read best with its own delta",
                f"share of projects: {each('diagonal_best')}",
                all(r[f"{name}_diagonal_best"] == 1 for r in rows for name in SCHEMES),
            ),
            Claim(
                "storage: prefix least, custom most",
                f"KiB a project: {kib}",
                stored["prefix"] < min(stored[n] for n in light) and max(stored[n] for n in light) < stored["custom"],
            ),
            Claim(
                "the last block is stored in less than embeddings and output",
                f"parameters: {each('trainable_parameters', light)}",
                stored["last_block"] < stored["embeddings_output"],
                central=False,  # a matter of vocabulary and width: the nano models have 1,536 tokens
            ),
            Claim(
                "last_block needs the fewest operations a step",
                f"GFLOP a step: {gflop}",
                min(step, key=lambda n: step[n]) == "last_block",
            ),
        ]
