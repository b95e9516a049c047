"""Card 35 on the sandbox: instructions in wordings that pretraining showed in instructions, and in some that it did not.

A soft prompt is tuned on three wordings of each instruction. Wordings 6 and 7 of every skill are never tuned on, nor does
pretraining use them in an instruction (it says in plain lines that they mean the same); wordings 0 to 4 it does use.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import numpy as np

from luthier import sandbox
from luthier.core.config import TrainSettings
from luthier.core.subject import Subject
from luthier.data.wordings import Wordings
from luthier.decoding.greedy import Greedy
from luthier.evaluation._family import items_of
from luthier.evaluation.instruction_spread import InstructionSpread
from luthier.objectives.consistency import Consistency
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import tune
from luthier.tuners.prompt_tuning import PromptTuning

SHOWN, TUNED, UNTOUCHED = (0, 1, 2, 3, 4), (0, 1, 2, 3, 5), (6, 7)
"""Wordings that pretraining uses in instructions, that are tuned on, and that neither does."""
ARMS: dict[str, dict[str, Any]] = {
    "task": {"alpha": 0.0}, "hidden": {"align": "hidden"}, "output_kl": {"align": "output_kl"},
    "similarity_kl": {"align": "similarity_kl"},
}  # fmt: skip


class OtherWords(Experiment):
    scope: ClassVar[str] = "this size"
    model: ClassVar[str] = "nano-1m"
    train_rows: ClassVar[int] = 1000
    test_rows: ClassVar[int] = 160
    tokens: ClassVar[int] = 8
    steps: ClassVar[int] = 250
    batch: ClassVar[int] = 12
    learning_rate: ClassVar[float] = 2e-2
    setup = """nano-1m and its eight skills in eight wordings each; a soft prompt of 8 tokens, 250 steps of 12 instructions in
    three wordings (a shown one as reference, two others of four shown and one new), AdamW at 2e-2 with linear decay, alpha
    0.5; then 160 unseen inputs in every wording, answers compared to the letter. Spread: standard deviation over the two
    untouched wordings of a skill, mean over skills."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        world: Any = sandbox.world("instructions")
        rng = random.Random(seed)
        train = []
        for i, row in enumerate(sandbox.rows("instructions", task="follow", n=self.train_rows, seed=seed)):
            prompts = [p["prompt"] for p in world.paraphrases(row)]
            first = rng.choice(TUNED[:4])
            chosen = [first, *rng.sample([w for w in TUNED if w != first], 2)]
            told = {"prompts": [prompts[w] for w in chosen], "completion": row["completion"]}
            train.append(Wordings().encode(told, i, tokenizer))
        asked = [
            {"prompts": [p["prompt"] for p in world.paraphrases(r)], "answer": r["answer"], "task": r["skill"]}
            for r in sandbox.rows("instructions", task="follow", split="test", n=self.test_rows, seed=12)
        ]
        out = self.score("base", base, tokenizer, asked)
        settings = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
        )
        for name, options in ARMS.items():
            tuner = PromptTuning(tokens=self.tokens)
            model = tune(base, tokenizer, tuner, train, settings, seed, objective=Consistency(**options)).model
            out |= self.score(name, model, tokenizer, asked)
        return out

    def score(self, name: str, model: Any, tokenizer: Any, asked: list[dict[str, Any]]) -> Row:
        subject = Subject(model, tokenizer, decoder=Greedy())
        out: Row = {}
        for part, some in (("shown", SHOWN), ("untouched", UNTOUCHED)):
            scorer = InstructionSpread(max_new_tokens=16, exact=True)
            rows = [{**r, "prompts": [r["prompts"][w] for w in some]} for r in asked]
            answers = scorer.ask(subject, items_of(rows))
            for metric in ("accuracy", "spread"):
                value = scorer.aggregate(metric, answers)(answers.stats, np.ones((1, len(rows))))
                out[f"{name}_{part}_{metric}"] = float(value[0])
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        def gap(name: str) -> float:
            return mean(rows, f"{name}_shown_accuracy") - mean(rows, f"{name}_untouched_accuracy")

        def told(key: str, *names: str) -> str:
            return ", ".join(f"{n.replace('_', ' ')} {spread(rows, f'{n}_{key}')}" for n in names)

        everywhere = ("base", *ARMS)
        return [
            Claim(
                "before tuning, new wordings cost at least 3 points",
                f"right: shown {spread(rows, 'base_shown_accuracy')}, untouched {spread(rows, 'base_untouched_accuracy')}",
                gap("base") >= 0.03,
            ),
            Claim(
                "with `hidden` the gap between shown and untouched wordings is at most half",
                f"gap: base {gap('base'):.3f}, hidden {gap('hidden'):.3f}, task alone {gap('task'):.3f}; "
                f"right on untouched: {told('untouched_accuracy', *everywhere)}",
                gap("hidden") <= 0.5 * gap("base"),
            ),
            Claim(
                "with `hidden` the spread over untouched wordings is at most 0.7 times that of the task loss alone",
                f"spread: {told('untouched_spread', *everywhere)}",
                mean(rows, "hidden_untouched_spread") <= 0.7 * mean(rows, "task_untouched_spread"),
            ),
            Claim(
                "shown wordings lose at most 1 point",
                f"right on shown: {told('shown_accuracy', *everywhere)}",
                mean(rows, "hidden_shown_accuracy") >= mean(rows, "base_shown_accuracy") - 0.01,
            ),
        ]
