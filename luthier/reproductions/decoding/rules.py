"""Card 31's rules on exchanges between drawn marks: a base model that goes on with the next exchange is made to end its answers.

The pull towards the end is rescaled to answers of one to four tokens; "changes" discourage every mark that could open the next
exchange, as the paper's table does with the signs of its template.
"""

from __future__ import annotations

import random

from luthier.reproductions._exchanges import Exchanges, answered, conversations
from luthier.reproductions._family import Claim, Row, mean, spread


class HandWrittenRules(Exchanges):
    setup = """Random Llama, 3 layers of width 128 (0.57M), pretrained anew for each seed: 700 steps of 32 documents of 48 tokens at
    3e-3, linear decay, loss on what can be known; the base pretrained too little is its last checkpoint (of every 25 steps) that
    begins fewer than 0.3 of 180 answers right. 360 test rows, greedy, at most 10 tokens. Rules: pull 15
    after 8 tokens, marks -4, diversity 1.5."""

    def measure(self, seed: int) -> Row:
        base, early = self.bases(seed)
        rows = conversations(self.test_rows, random.Random(f"{seed}/test"))
        out: Row = {}
        decoders = {"plain": None, **self.tables()}
        for name, model in (("base", base), ("early", early)):
            for rules, decoder in decoders.items():
                out |= {f"{name}_{rules}_{metric}": value for metric, value in answered(model, rows, decoder).items()}
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        def told(*names: str) -> str:
            return "; ".join(
                f"{n.replace('_', ' ')} {spread(rows, f'{n}_exact')} (stops {spread(rows, f'{n}_stopped')}, begins right "
                f"{spread(rows, f'{n}_prefix')})"
                for n in names
            )

        exact = {n: mean(rows, f"base_{n}_exact") for n in ("plain", "end", "end_changes", "all_rules", "changes")}
        early = [f"early_{n}" for n in ("end", "end_changes", "all_rules", "changes")]
        return [
            Claim(
                "the base knows the answers and does not stop: at most 0.1 are right and end",
                told("base_plain"),
                all(r["base_plain_exact"] <= 0.1 for r in rows),
            ),
            Claim(
                "with the pull towards the end, at least 0.5; with marks discouraged as well, no fewer",
                told("base_end", "base_end_changes"),
                exact["end"] >= 0.5 and exact["end_changes"] >= exact["end"],
                headline=True,
            ),
            Claim(
                "on a base that was pretrained too little no more answers are right than it begins right (0.05 for noise)",
                told("early_plain", *early),
                all(r[f"{name}_exact"] <= r["early_plain_prefix"] + 0.05 for r in rows for name in early),
            ),
            Claim(
                "each rule counts: without the pull, and without the changes, fewer answers are right than with both",
                told("base_changes", "base_end", "base_end_changes"),
                max(exact["changes"], exact["end"]) < exact["end_changes"],
                central=False,
            ),
            Claim(
                "diversity costs where answers repeat their instruction: with all rules fewer are right than without it",
                told("base_all_rules", "base_end_changes"),
                exact["all_rules"] < exact["end_changes"],
                central=False,
            ),
        ]
