"""Card 60 on the sandbox: the review's representatives and full fine-tuning on a small encoder, one table a task.

Topic and acceptability of a sentence, each method at the rate that its own pilot liked best. A seed is one run of the
procedure a task; a part of the table is made twice.
"""

from __future__ import annotations

import tempfile
from typing import Any, ClassVar

import luthier
from luthier.core import catalog
from luthier.recipes.peft_benchmark import REVIEW
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.verbs.load import load

CLASSES = {"topic": 5, "acceptability": 2}
TASKS = tuple(CLASSES)
METHODS = ("full", *(m for m in REVIEW if m != "qlora"))
"""Without LoRA on a rounded base, whose memory matters where matrices are large: card 63's experiment has it."""
AGAIN = ("full", "lora", "prompt_tuning")
"""What is run twice."""


class Benchmark(Experiment):
    scope: ClassVar[str] = "this size and these rates"
    model: ClassVar[str] = "nano-encoder"
    train_rows: ClassVar[int] = 400
    test_rows: ClassVar[int] = 300
    epochs: ClassVar[int] = 6
    batch: ClassVar[int] = 16
    setup = """nano-encoder on 400 labelled rows of topic (five classes) and of acceptability (two), 6 epochs of batches of 16,
    AdamW with 10 % warm-up and linear decay; 300 unseen rows. Ten representatives of the review and full fine-tuning, each
    at the best of three rates (1e-3, 5e-3, 2e-2; of soft prompts 30 times as large) by the loss on a fifth of the training
    rows. Sizes are the defaults. Memory is weights, gradients, optimiser and what is kept for backward, of the largest
    step. Pilots with seed 0: sentiment, which this encoder's vectors do not tell, left every part but LoRA (0.67) near
    chance at the end of as many steps, full 0.96; so topic and acceptability stand in place of the card's sentiment and
    entailment. With pilots of 60 steps houlsby took a rate at which the longer run broke down; they are whole runs now."""

    def measure(self, seed: int) -> Row:
        out: Row = {}
        with tempfile.TemporaryDirectory(prefix="luthier-peft-") as folder:
            for task in TASKS:
                done = luthier.run(self.recipe(task, seed, METHODS, f"{folder}/{task}"), quiet=True)
                for method in METHODS:
                    (cell,) = done.cells(method)
                    cost, score = cell["results"]["cost"], cell["results"]["tuned"][task]["accuracy"]["value"]
                    out |= {
                        f"{task}_{method}": score,
                        f"{task}_{method}_memory": float(cost["peak_memory_bytes"]),
                        f"{task}_{method}_trained": float(cost["trainable_parameters"]),
                        f"{task}_{method}_counted": float(self.counted(task, method)),
                        f"{task}_{method}_stored": float(cost["stored_bytes"]),
                        f"{task}_{method}_edge": float(done.told["pilots"][method]["edge"] is not None),
                    }
            again = luthier.run(self.recipe(TASKS[0], seed, AGAIN, f"{folder}/again"), quiet=True)
            for method in AGAIN:
                (value,) = again.values(method, TASKS[0], "accuracy")
                out[f"again_{method}"] = value
        return out

    def recipe(self, task: str, seed: int, methods: tuple[str, ...], place: str) -> dict[str, Any]:
        source = f"sandbox:labels?task={task}_label"
        return {
            "model": self.model, "data": {"train": f"{source}&n={self.train_rows}&seed={seed}"}, "seed": seed,
            "objective": "classification", "output_dir": place,
            "procedure": {
                "name": "peft_benchmark", "methods": list(methods), "rates": [1e-3, 5e-3, 2e-2], "seeds": 1, "fresh": False,
            },
            "train": {
                "num_train_epochs": self.epochs, "per_device_train_batch_size": self.batch, "warmup_ratio": 0.1,
                "logging_steps": 1000, "save_strategy": "no",
            },
            "evaluate": {
                "drift": False,
                "tasks": [
                    {"name": task, "scorer": "classification", "data": f"{source}&split=test&n={self.test_rows}"},
                ],
            },
        }  # fmt: skip

    def counted(self, task: str, method: str) -> int:
        """What moves by the method's own formula, task head apart; of a child, all that it chooses from."""
        tuner = catalog.load("tuners", method)()
        return tuner.parameter_count(load(self.model, "classification", CLASSES[task]).model)

    def claims(self, rows: list[Row]) -> list[Claim]:
        over = {m: sum(mean(rows, f"{t}_{m}") for t in TASKS) / len(TASKS) for m in METHODS}
        order = sorted(METHODS, key=lambda m: -over[m])
        told = ", ".join(f"{m} {' / '.join(spread(rows, f'{t}_{m}') for t in TASKS)}" for m in order)
        memory = {m: mean(rows, f"{TASKS[1]}_{m}_memory") / 1e6 for m in METHODS}
        heads = {
            t: {r[f"{t}_{m}_trained"] - r[f"{t}_{m}_counted"] for r in rows for m in METHODS if m != "child_tuning"}
            for t in TASKS
        }
        apart = max(abs(r[f"again_{m}"] - r[f"{TASKS[0]}_{m}"]) for r in rows for m in AGAIN)
        near = max(over[m] for m in METHODS if m != "full")
        return [
            Claim(
                "what moves is what each method's formula counts, and the head (a child's share apart)",
                "; ".join(f"{t}: beyond the formula {', '.join(f'{n:g}' for n in sorted(heads[t]))}" for t in TASKS),
                all(len(found) == 1 for found in heads.values()),
            ),
            Claim(
                "full fine-tuning needs more memory than LoRA",
                ", ".join(f"{m} {memory[m]:.1f} MB" for m in sorted(METHODS, key=lambda m: -memory[m])),
                memory["full"] > memory["lora"],
            ),
            Claim(
                f"full fine-tuning scores at least as well as prompt tuning ({' / '.join(TASKS)}, all methods, best first)",
                told,
                over["full"] >= over["prompt_tuning"],
            ),
            Claim("a table made twice is the same", f"largest difference {apart:g}", apart == 0),
            Claim(
                "a part of the weights does as well as all of them, to two points",
                f"full {over['full']:.3f}, best part {near:.3f}",
                near >= over["full"] - 0.02,
                central=False,
            ),
        ]
