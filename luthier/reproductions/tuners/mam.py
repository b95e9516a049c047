"""Card 19 on the sandbox: a short prefix and a scaled parallel adapter against either alone, at equal size when served.

MAM, prefix tuning, the parallel adapter beside the feed-forward block and the sequential one behind it, each given as many
scalars as MAM holds after its prefix is folded, and full fine-tuning, on two sequence tasks that pretraining never showed.
"""

from __future__ import annotations

from typing import Any, ClassVar

from luthier.core.method import Tuner
from luthier.reproductions._family import Claim, Row
from luthier.reproductions.tuners._unified import NewTasks
from luthier.tuners.mam import MAM
from luthier.tuners.parallel import Parallel
from luthier.tuners.pfeiffer import Pfeiffer
from luthier.tuners.prefix import Prefix


class MixAndMatch(NewTasks):
    seeds: ClassVar[int] = 3
    length: ClassVar[int] = 4
    size: ClassVar[int] = 24
    scale: ClassVar[float] = 4.0
    mlp: ClassVar[int] = 64
    setup = """nano-1m tuned on 'mix' and on 'backshift', 200 steps of 16 rows, AdamW with linear decay, each adapter at the
    better of 5e-3 and 1e-2 (mean over seeds), all weights at 1e-3; token accuracy on 100 unseen rows, mean of the two tasks.
    Pilots with seed 0 on an earlier nano-1m, all at 1e-2: MAM 0.96, parallel alone 1.00, sequential 0.80, prefix 0.51. The
    prefix learns 'mix' but not 'backshift' (0.10 or less at 3e-3, 1e-2 and 3e-2, with its network and without)."""

    def tuners(self, base: Any) -> dict[str, Tuner]:
        """Sizes of the others: the largest that hold no more scalars than MAM when served."""
        budget = MAM(length=self.length, size=self.size, folded=True).parameter_count(base)
        length = max(n for n in range(1, 200) if Prefix(length=n, folded=True).parameter_count(base) <= budget)
        size = max(n for n in range(1, 200) if Parallel(size=n).parameter_count(base) <= budget)
        return {
            "mam": MAM(length=self.length, size=self.size, scale=self.scale, mlp=self.mlp),
            "prefix": Prefix(length=length, mlp=self.mlp),
            "parallel": Parallel(size=size, scale=self.scale),
            "sequential": Pfeiffer(size=size),
        }

    def claims(self, rows: list[Row]) -> list[Claim]:
        names = ("mam", "prefix", "parallel", "sequential", "full")
        found = {n: self.best(rows, n)[0] for n in names}
        told = {n: self.best(rows, n)[1] for n in names}
        return [
            Claim(
                "MAM learns within 5 points of full fine-tuning",
                f"{told['mam']}, {told['full']}",
                found["mam"] >= found["full"] - 0.05,
            ),
            Claim(
                "MAM learns more than a prefix of as many scalars",
                f"{told['mam']}, {told['prefix']}",
                found["mam"] > found["prefix"],
            ),
            Claim(
                "MAM learns more than a sequential adapter of as many scalars",
                f"{told['mam']}, {told['sequential']}",
                found["mam"] > found["sequential"],
            ),
            Claim(
                "MAM learns at least as much as the parallel adapter alone, of as many scalars",
                f"{told['mam']}, {told['parallel']}",
                found["mam"] >= found["parallel"],
                central=False,
            ),
        ]
