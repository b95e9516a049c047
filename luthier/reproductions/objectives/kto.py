"""KTO on the sandbox: single answers judged good or bad, against DPO on the same answers as pairs, and with few good ones.

Every answer of the pairs is one row for KTO, in an order that tears pairs apart. Where good answers are rare, one in ten is
kept: once with equal weights, once with a weight that makes lambda_D n_D / (lambda_U n_U) one again, as the paper advises.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from luthier import sandbox
from luthier.core.batch import GroupExample
from luthier.objectives.dpo import DPO
from luthier.objectives.kto import KTO
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions.objectives._pairs import StylePairs

RARE = 10


class Unpaired(StylePairs):
    setup = """nano-1m, every weight moving, on about 1,100 pairs of its own answers to 490 questions about people, ordered by a
    reward of six styles; 150 steps of AdamW at 1e-4 with linear decay, of 16 pairs for DPO and of 32 single answers for KTO, both
    at beta 0.1; then 114 questions about people whom no pair names, one answer each at temperature 1. Rare: one in ten of the
    good answers and all bad ones. The settings are those of tdpo's experiment; nothing was piloted for KTO."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        out: Row = {f"base_{k}": v for k, v in self.said(base, tokenizer).items()}
        pairs = self.pairs(base, tokenizer, seed)
        single, rare = apart(pairs, seed), apart(pairs, seed, RARE)
        good = sum(e.scores == [1.0] for e in rare)
        out["rare_share"] = good / len(rare)
        arms = {
            "dpo": (DPO(), pairs, self.batch), "kto": (KTO(), single, 2 * self.batch), "rare": (KTO(), rare, 2 * self.batch),
            "rare_weighted": (KTO(desirable_weight=(len(rare) - good) / good), rare, 2 * self.batch),
        }  # fmt: skip
        for name, (objective, rows, batch) in arms.items():
            model = self.tuned(base, tokenizer, objective, rows, seed, batch)
            out |= {f"{name}_{k}": v for k, v in self.said(model, tokenizer).items()}
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        def gain(name: str) -> float:
            return mean(rows, f"{name}_reward") - mean(rows, "base_reward")

        def told(*names: str) -> str:
            return "reward: " + ", ".join(f"{n} {spread(rows, f'{n}_reward')}" for n in ("base", *names))

        return [
            Claim(
                "single rows judged good or bad earn what DPO earns on the same answers in pairs: 0.9 of its gain at least",
                told("dpo", "kto"),
                gain("kto") >= 0.9 * gain("dpo") > 0,
            ),
            Claim(
                "with one good answer to ten bad ones, weights that even them out keep 0.8 of the gain of all rows",
                f"{told('kto', 'rare_weighted')}; good {spread(rows, 'rare_share')} of the rows",
                gain("rare_weighted") >= 0.8 * gain("kto") > 0,
            ),
            Claim(
                "without these weights less of it is kept",
                told("rare", "rare_weighted"),
                gain("rare") < gain("rare_weighted"),
            ),
            Claim(
                "facts told right survive as they do under DPO, within 0.05",
                ", ".join(f"{n} {spread(rows, f'{n}_facts')}" for n in ("base", "dpo", "kto")),
                mean(rows, "kto_facts") >= mean(rows, "dpo_facts") - 0.05,
                central=False,
            ),
        ]


def apart(pairs: Sequence[GroupExample], seed: int, keep: int = 1) -> list[GroupExample]:
    """Each answer as a row of its own, in a drawn order; of the good ones every `keep`-th."""
    rows = [
        GroupExample(2 * i + k, e.prompt, [e.answers[k]], [1.0 - k])
        for i, e in enumerate(pairs)
        for k in (0, 1)
        if k == 1 or i % keep == 0
    ]
    random.Random(seed).shuffle(rows)
    return rows
