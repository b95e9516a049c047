"""Card 05 on the sandbox: tune on a new sequence task, then ask for the facts of pretraining.

Full fine-tuning against half fine-tuning (category and layer level) at equal steps, rate and data, and half-reset of the
fully tuned model. Facts are asked in the wording that pretraining uses; the new task is scored by token accuracy under
teacher forcing and by exact match.
"""

from __future__ import annotations

import copy
from typing import ClassVar

from luthier.edits.half_reset import HalfReset
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions._forgetting import Forgetting
from luthier.tuners.full import Full
from luthier.tuners.hft import HFT


class HalfFineTuning(Forgetting):
    scope: ClassVar[str] = "this size and rate"
    seeds: ClassVar[int] = 3
    setup = """nano-1m tuned on a sequence task that pretraining never showed, 250 steps of 32 rows, AdamW at 2.5e-3 with linear
    decay; then 300 pretrained facts and 200 unseen rows of the new task. Pilots with seed 0 (facts kept by full, half,
    half-reset): at 1.5e-3 0.63, 0.85, 0.77; at 2e-3 0.35, 0.83, 0.68; at 2.5e-3 0.34, 0.81, 0.61; at 3e-3 0.08, 0.77, 0.41.
    All learned the task."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = self.base()
        out: Row = {"base_facts": self.facts_kept(base, tokenizer)}
        tuned = {}
        for name, tuner in (("full", Full()), ("hft", HFT()), ("hft_layer", HFT(level="layer"))):
            tuned[name] = self.tuned(base, tokenizer, tuner, seed)
            out |= {f"{name}_{k}": v for k, v in self.score(tuned[name], tokenizer).items()}
        reset = copy.deepcopy(base)
        reset.load_state_dict(HalfReset(seed=seed).apply([tuned["full"].state_dict(), base.state_dict()], base))
        return out | {f"half_reset_{k}": v for k, v in self.score(reset, tokenizer).items()}

    def claims(self, rows: list[Row]) -> list[Claim]:
        full, hft, layer = (mean(rows, f"{k}_facts") for k in ("full", "hft", "hft_layer"))
        reset = mean(rows, "half_reset_facts")
        gap = mean(rows, "full_token_accuracy") - mean(rows, "hft_token_accuracy")
        return [
            Claim(
                "half fine-tuning keeps at least twice the facts of full fine-tuning",
                f"facts kept: hft {spread(rows, 'hft_facts')}, full {spread(rows, 'full_facts')}, "
                f"base {spread(rows, 'base_facts')}",
                hft >= 2 * full,
            ),
            Claim(
                "the category draw keeps at least as many facts as the layer draw",
                f"category {spread(rows, 'hft_facts')}, layer {spread(rows, 'hft_layer_facts')}",
                hft >= layer,
            ),
            Claim(
                "resetting half of the fully tuned model brings back at least 0.6 of the facts",
                f"half-reset {spread(rows, 'half_reset_facts')}",
                reset >= 0.6,
                central=False,  # a claim about the edit, at the rate that was chosen for the tuner
            ),
            Claim(
                "half fine-tuning learns the new task within 10 points of full fine-tuning (tokens, equal steps)",
                f"token accuracy: hft {spread(rows, 'hft_token_accuracy')}, full {spread(rows, 'full_token_accuracy')}",
                gap <= 0.10,
            ),
        ]
