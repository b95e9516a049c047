"""Card 52 on the sandbox: a few shown pairs of a function that pretraining never showed, moved inside balls.

One of the eight tables of pretraining is changed at some symbols. A handful of its pairs is the context and at the same
time all that there is to train on. Asked are symbols outside the context (3 entries changed), or all symbols (6 changed).
"""

from __future__ import annotations

import copy
import random
import statistics
from typing import Any, ClassVar

from luthier import sandbox
from luthier.core.batch import TextExample
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import Objective, Tuner
from luthier.core.subject import Subject
from luthier.objectives.context_sft import ContextSFT
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.sandbox.worlds.sequence import LETTERS, NEUTRAL, TABLES
from luthier.tuners.cpt import CPT
from luthier.tuners.prompt_tuning import PromptTuning

FREE = 1e6
"""A radius that no step reaches."""


class ContextAwarePromptTuning(Experiment):
    seeds: ClassVar[int] = 3
    model: ClassVar[str] = "nano-1m"
    draws: ClassVar[int] = 12
    steps: ClassVar[int] = 60
    learning_rate: ClassVar[float] = 1e-2
    prompt_learning_rate: ClassVar[float] = 5e-2
    setup = """nano-1m; a table of pretraining with 3 (6) of 12 entries exchanged, 3 (4) of its pairs as context and as
    training rows, 60 steps on all of them, AdamW at 1e-2 (5e-2 for the free prompt), constant; radii are shares of the mean
    length of the embeddings, and only the shown inputs move; 12 draws of table, entries and context a seed. Held out:
    symbols that the context does not show; all: every symbol. The likeliest of the twelve symbols is the answer. Pilots
    with seed 0: 6 draws with these settings (held out: context .278, radius .1 .278, .3 .241, no ball .093; all: .153, .167,
    .167, radius 1 .222), and 2 draws with templates moving too (held out .333, .333, 0, 0; all .167, .250, .375, .417). In
    neither did all claims hold; nothing was chosen by them but that templates stay still, as in the card's own trial."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        told: dict[str, list[float]] = {}
        for draw in range(self.draws):
            for setting, changed, shown in (("held_out", 3, 3), ("all", 6, 4)):
                rng = random.Random(f"{seed}/{draw}/{setting}")
                table = _changed(rng, changed)
                context = rng.sample(LETTERS, shown)
                asked = [x for x in LETTERS if setting == "all" or x not in context]
                radii = {"icl": 0.0, "cpt_0.1": 0.1, "cpt_0.3": 0.3, "cpt_1": 1.0, "no_ball": FREE}
                if setting == "held_out":
                    del radii["cpt_1"]
                for name, share in radii.items():
                    tuner = _context(base, tokenizer, table, context, share)
                    steps = 0 if name == "icl" else self.steps
                    model = self._tuned(base, tokenizer, tuner, ContextSFT(), table, context, steps, self.learning_rate)
                    told.setdefault(f"{setting}_{name}", []).append(_accuracy(model, tokenizer, table, asked))
                free = PromptTuning(tokens=12)
                model = self._tuned(base, tokenizer, free, SFT(), table, context, self.steps, self.prompt_learning_rate)
                told.setdefault(f"{setting}_prompt", []).append(_accuracy(model, tokenizer, table, asked))
        return {k: statistics.fmean(v) for k, v in told.items()}

    def _tuned(
        self, base: Any, tokenizer: Any, tuner: Tuner, objective: Objective, table: dict[str, str], context: list[str],
        steps: int, learning_rate: float,
    ) -> Any:  # fmt: skip
        model = tuner.wrap(copy.deepcopy(base), "causal_lm", 0)
        if steps:
            rows = []
            for i, x in enumerate(context):
                question = tokenizer(f"{NEUTRAL}: {x} ->", add_special_tokens=False)["input_ids"]
                answer = tokenizer(f" {table[x]}", add_special_tokens=False)["input_ids"]
                rows.append(TextExample(i, [*question, *answer], [False] * len(question) + [True] * len(answer)))
            settings = TrainSettings(
                max_steps=steps, per_device_train_batch_size=len(rows), learning_rate=learning_rate,
                lr_scheduler_type="constant",
            )  # fmt: skip
            Loop(model, tuner, objective, rows, settings, tokenizer.pad_token_id).fit()
        return model.eval()

    def claims(self, rows: list[Row]) -> list[Claim]:
        held = {k: mean(rows, f"held_out_{k}") for k in ("icl", "cpt_0.1", "cpt_0.3", "no_ball")}
        every = {k: mean(rows, f"all_{k}") for k in ("icl", "cpt_0.1", "cpt_0.3", "cpt_1")}
        ball = min(held["cpt_0.1"], held["cpt_0.3"])
        return [
            Claim(
                "on symbols outside the context the balls prevent over-fitting: 5 points above the same loss without",
                f"radius 0.1 {spread(rows, 'held_out_cpt_0.1')}, 0.3 {spread(rows, 'held_out_cpt_0.3')}, no ball "
                f"{spread(rows, 'held_out_no_ball')}, free prompt {spread(rows, 'held_out_prompt')}",
                ball >= held["no_ball"] + 0.05,
            ),
            Claim(
                "on symbols outside the context at most 2 points are lost against the written context",
                f"written context {spread(rows, 'held_out_icl')}",
                ball >= held["icl"] - 0.02,
            ),
            Claim(
                "on all symbols radius 0.3 gains 2 points on the written context, and more freedom fits more",
                f"written context {spread(rows, 'all_icl')}, radius 0.1 {spread(rows, 'all_cpt_0.1')}, 0.3 "
                f"{spread(rows, 'all_cpt_0.3')}, 1 {spread(rows, 'all_cpt_1')}, no ball {spread(rows, 'all_no_ball')}, free "
                f"prompt {spread(rows, 'all_prompt')}",
                every["cpt_0.3"] >= every["icl"] + 0.02 and every["cpt_0.1"] <= every["cpt_0.3"] <= every["cpt_1"],
            ),
        ]


def _changed(rng: random.Random, entries: int) -> dict[str, str]:
    """A table of pretraining in which the values of some symbols went round."""
    table = dict(zip(LETTERS, rng.choice(TABLES), strict=True))
    symbols = rng.sample(LETTERS, entries)
    values = [table[x] for x in symbols]
    return table | dict(zip(symbols, values[1:] + values[:1], strict=True))


def _context(base: Any, tokenizer: Any, table: dict[str, str], symbols: list[str], share: float) -> CPT:
    """Balls around the inputs shown, whose radius is `share` of the mean length of an embedding."""
    weight = base.get_input_embeddings().weight
    epsilon = share * float(weight.norm(dim=1).mean()) / (weight.shape[1] / 2048) ** 0.5
    tuner = CPT(
        examples=tuple((f" {x}", f" {table[x]}") for x in symbols), input_template=f"{NEUTRAL}:{{}} ->", between="\n",
        epsilon_input=epsilon, epsilon_format=0.0,
    )  # fmt: skip
    return tuner.for_data(tokenizer)


def _accuracy(model: Any, tokenizer: Any, table: dict[str, str], asked: list[str]) -> float:
    told = Subject(model, tokenizer).next_token_logp([f"{NEUTRAL}: {x} ->" for x in asked])  # (n, V)
    ids = [tokenizer(f" {x}", add_special_tokens=False)["input_ids"][-1] for x in LETTERS]
    best = told[:, ids].argmax(1)
    return sum(LETTERS[int(b)] == table[x] for b, x in zip(best, asked, strict=True)) / len(asked)
