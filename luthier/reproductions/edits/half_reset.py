"""Card 05 on the sandbox: a fully tuned model gets back a share of its old matrices, and with them its old facts.

Tuned on a new sequence task, then reset by shares 0, 1/4, 1/2, 3/4 and 1 of the body, without training. Share 0 is the
tuned model and share 1 the base.
"""

from __future__ import annotations

import copy
import itertools
from typing import ClassVar

from luthier.edits.half_reset import HalfReset
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions._forgetting import Forgetting
from luthier.tuners.full import Full

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class HalfResetSweep(Forgetting):
    scope: ClassVar[str] = "this size and rate"
    seeds: ClassVar[int] = 3
    learning_rate: ClassVar[float] = 2e-3
    setup = """nano-1m, fully tuned on a sequence task that pretraining never showed, 250 steps of 32 rows, AdamW at 2e-3 with
    linear decay; then shares of the body's matrices (category draw) are put back. 300 pretrained facts, 200 unseen rows of the
    new task and 200 of copying. Of the rates tried for card 05 with seed 0 (facts of the tuned model, and after half-reset:
    1.5e-3 0.63, 0.77; 2e-3 0.35, 0.68; 2.5e-3 0.34, 0.61; 3e-3 0.08, 0.41) the second: the card's claim is about a tune that
    still has something to give back."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = self.base()
        tuned = self.tuned(base, tokenizer, Full(), seed)
        out: Row = {
            "base_facts": self.facts_kept(base, tokenizer),
            "base_copy": self.skill_kept(base, tokenizer, "copy"),
        }
        for share in SHARES:
            model = copy.deepcopy(base)
            edit = HalfReset(share=share, seed=seed)
            model.load_state_dict(edit.apply([tuned.state_dict(), base.state_dict()], base))
            found = self.score(model, tokenizer) | {"copy": self.skill_kept(model, tokenizer, "copy")}
            out |= {f"{k}_{share:g}": v for k, v in found.items()}
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        kept = {s: mean(rows, f"facts_{s:g}") for s in SHARES}
        sweep = ", ".join(f"{s:g}: {spread(rows, f'facts_{s:g}')}" for s in SHARES)
        task = ", ".join(f"{s:g}: {spread(rows, f'token_accuracy_{s:g}')}" for s in SHARES)
        steps = list(itertools.pairwise(SHARES))
        return [
            Claim(
                "resetting half of the fully tuned model brings back at least 0.6 of the facts",
                f"facts by share: {sweep}",
                kept[0.5] >= 0.6,
            ),
            Claim(
                "half-reset keeps more facts than the tuned model it starts from",
                f"tuned {spread(rows, 'facts_0')}, half-reset {spread(rows, 'facts_0.5')}",
                kept[0.5] > kept[0.0],
            ),
            Claim(
                "share 1 is the base model again",
                f"facts {spread(rows, 'facts_1')}, base {spread(rows, 'base_facts')}",
                all(r["facts_1"] == r["base_facts"] and r["copy_1"] == r["base_copy"] for r in rows),
            ),
            Claim(
                "the more is put back, the more facts return and the less of the new task remains",
                f"token accuracy on the new task by share: {task}",
                all(
                    kept[b] >= kept[a] and mean(rows, f"token_accuracy_{b:g}") <= mean(rows, f"token_accuracy_{a:g}")
                    for a, b in steps
                ),
                central=False,
            ),
            Claim(
                "copying comes back as well, in part",
                f"copy: tuned {spread(rows, 'copy_0')}, half-reset {spread(rows, 'copy_0.5')}, base {spread(rows, 'base_copy')}",
                mean(rows, "copy_0.5") > mean(rows, "copy_0"),
                central=False,
            ),
        ]
