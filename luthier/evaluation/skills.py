"""Skills: what a model can do in the sandbox's own worlds, judged by each world's exact checker.

    score = mean_i world.score(row_i, generated_i)                    in [0, 1]

    world, task, part   which rows (the world's own defaults where left out)
    split               "test" rows were never seen in pretraining
    n, seed             how many rows, and which
Cost:       one generation per row.
Paper:      none.
Departures: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.subject import Subject
from luthier.evaluation._family import Answers, Item, Scorer, need


@dataclass(frozen=True)
class Skills(Scorer):
    paper: ClassVar[str] = ""
    metrics: ClassVar[dict[str, bool]] = {"score": True}
    sample: ClassVar[str] = "score"
    world: str = "sequence"
    task: str = ""
    part: str = ""
    split: str = "test"
    n: int = 100
    seed: int = 0
    max_new_tokens: int = 40

    def rows(self) -> list[dict[str, Any]]:
        from luthier import sandbox

        return sandbox.world(self.world).rows(
            task=self.task, part=self.part, split=self.split, n=self.n, seed=self.seed
        )

    def ask(self, subject: Subject, items: Sequence[Item], base: Answers | None = None) -> Answers:
        from luthier import sandbox

        need(items, "prompt", self.name)
        world = sandbox.world(self.world)
        outputs = subject.generate(
            [i.prompt for i in items], self.max_new_tokens, (world.stop,) if self._plain(world) else ()
        )
        scores = [float(world.score(i.row, o)) for i, o in zip(items, outputs, strict=True)]
        return self.answers(items, {"score": scores}, outputs)

    def _plain(self, world: Any) -> bool:
        """Answers that may begin with their stop string are cut by the world itself, not while they are generated."""
        return bool(world.stop) and not any(
            str(r.get("completion", "")).startswith(world.stop) for r in world.rows(task=self.task, part=self.part, n=1)
        )
