"""Card 60 on the sandbox: a child of the network, random or chosen by the task, against full fine-tuning on small sets.

The paper's setting is few labelled rows: full fine-tuning, the random child of each step and the child of the largest
Fisher information, on two classifications and a regression of few rows, the same head and order of rows for all.
"""

from __future__ import annotations

from typing import ClassVar

from luthier.core.method import Tuner
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions._small_sets import SmallSets
from luthier.tuners.child_tuning import ChildTuning
from luthier.tuners.full import Full

CHILDREN: dict[str, Tuner] = {
    "task_free": ChildTuning(variant="task_free", share=0.3),
    "task_driven": ChildTuning(variant="task_driven", share=0.3, rows=60),
}


class Children(SmallSets):
    seeds: ClassVar[int] = 5
    faster: ClassVar[float] = 3.0
    setup = """nano-encoder on 60 rows of topic (five classes), 60 of acceptability (two) and 240 pairs of
    similarity (a number), 30 epochs of batches of 16, AdamW with 10 % warm-up and linear decay; 300 unseen
    rows, accuracy and Pearson correlation. Full fine-tuning and children at 6e-4 and at 1.8e-3 each, since a
    masked step is shorter (what is masked does not move at all); each method is judged at its better rate by
    the mean over seeds, chosen alike for all. p = 0.3, from the paper's grids. Pilot on seed 0 of an earlier,
    weaker encoder, at 6e-4, topic and acceptability: full 1.00 and 0.83, task_free 0.51 and 0.76, task_driven
    0.91 and 0.77."""

    def measure(self, seed: int) -> Row:
        out: Row = {}
        for task in self.objectives:
            for name, tuner in {"full": Full(), **CHILDREN}.items():
                for label, rate in (("slow", self.learning_rate), ("fast", self.faster * self.learning_rate)):
                    out[f"{task}_{name}_{label}"] = self.outcome(task, tuner, seed, learning_rate=rate).score
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        best = {(t, m): self._best(rows, t, m) for t in self.objectives for m in ("full", *CHILDREN)}
        told = "; ".join(
            f"{t}: " + ", ".join(f"{m} {spread(rows, best[t, m])}" for m in ("full", *CHILDREN))
            for t in self.objectives
        )
        over = {
            m: sum(mean(rows, best[t, m]) for t in self.objectives) / len(self.objectives) for m in ("full", *CHILDREN)
        }
        return [
            Claim(
                "a child generalises better than the whole network on small sets (mean over the tasks)",
                told,
                max(over[m] for m in CHILDREN) > over["full"],
            ),
            Claim(
                "the child that the task chose is at least as good as a random one",
                f"means over the tasks: {', '.join(f'{m} {v:.3f}' for m, v in over.items())}",
                over["task_driven"] >= over["task_free"],
                central=False,
            ),
        ]

    def _best(self, rows: list[Row], task: str, name: str) -> str:
        return max((f"{task}_{name}_{label}" for label in ("slow", "fast")), key=lambda key: mean(rows, key))
