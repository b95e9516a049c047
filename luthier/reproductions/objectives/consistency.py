"""Card 35 on the sandbox: a soft prompt that pulls the wordings of an instruction together, audited on wordings it never saw.

nano-1m follows instructions in five wordings of each of eight skills; three further ones never stood in an instruction. A
prompt is learned on inputs under three wordings, four of the known and one of the new; two new ones are left for the audit.
Tuning on the same rows without the alignment term shows what the wordings alone bring.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

from luthier import data, sandbox
from luthier.core.config import TrainSettings
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.evaluation._family import items_of
from luthier.evaluation._statistics import value
from luthier.evaluation.instruction_spread import InstructionSpread
from luthier.objectives.consistency import Consistency
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import tune
from luthier.sandbox.worlds.instructions import SEEN_WORDINGS, Instructions
from luthier.tuners.prompt_tuning import PromptTuning

SHOWN, UNTOUCHED = (0, 1, 2, 3, 5), (6, 7)
"""Wordings that training draws from, and those that nothing but the audit asks in."""
KNOWN = tuple(range(SEEN_WORDINGS))
ARMS = {
    "wordings": Consistency(alpha=0.0), "hidden": Consistency(align="hidden"), "output_kl": Consistency(align="output_kl"),
    "similarity_kl": Consistency(align="similarity_kl"),
}  # fmt: skip


class Wordings(Experiment):
    scope: ClassVar[str] = "this size"
    model: ClassVar[str] = "nano-1m"
    rows: ClassVar[int] = 1000
    wordings: ClassVar[int] = 3
    tokens: ClassVar[int] = 8
    steps: ClassVar[int] = 250
    batch: ClassVar[int] = 8
    learning_rate: ClassVar[float] = 2e-2
    asked: ClassVar[int] = 160
    setup = """nano-1m, still; 8 vectors in front, 250 steps of 8 rows in 3 wordings each (drawn of 4 that pretraining asked in and
    1 that it did not), AdamW at 2e-2 with linear decay, alpha 0.5, or 0 for the wordings alone; 160 unseen inputs in the 5 known
    wordings and in 2 that neither pretraining nor the prompt was shown. Sizes and rate are the card's; nothing was piloted."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        rng, world = random.Random(seed), Instructions()
        rows = []
        for row in sandbox.rows(world, task="follow", part="seen", n=self.rows, seed=seed):
            told = world.paraphrases(row)
            rows.append({
                "prompts": [told[w]["prompt"] for w in rng.sample(SHOWN, self.wordings)], "completion": row["completion"],
            })  # fmt: skip
        table = data.RowTable(rows, [f"row {i}" for i in range(len(rows))], found=len(rows))
        train = data.prepare(table, tokenizer=tokenizer).examples
        settings = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
        )
        out = self.audit("none", base, tokenizer)
        for name, objective in ARMS.items():
            tuner = PromptTuning(tokens=self.tokens)
            model = tune(base, tokenizer, tuner, train, settings, seed, objective=objective).model
            out |= self.audit(name, model, tokenizer)
        return out

    def audit(self, name: str, model: Any, tokenizer: Any) -> Row:
        """Accuracy and spread over wordings, known and untouched."""
        world, scorer = Instructions(), InstructionSpread(max_new_tokens=16, exact=True)
        subject = Subject(model, tokenizer, decoder=Greedy())
        rows = sandbox.rows(world, task="follow", part="seen", split="test", n=self.asked, seed=12)
        out: Row = {}
        for kind, bank in (("known", KNOWN), ("untouched", UNTOUCHED)):
            asked = [
                {"prompts": [world.paraphrases(r)[w]["prompt"] for w in bank], "answer": r["answer"], "task": r["skill"],
                 "prompt": r["prompt"]}
                for r in rows
            ]  # fmt: skip
            answers = scorer.ask(subject, items_of(asked))
            for metric in ("accuracy", "spread"):
                out[f"{name}_{kind}_{metric}"] = value(scorer.aggregate(metric, answers), answers.stats)
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        def at(name: str, kind: str, metric: str = "accuracy") -> float:
            return mean(rows, f"{name}_{kind}_{metric}")

        def gap(name: str) -> float:
            return at(name, "known") - at(name, "untouched")

        def told(kind: str, metric: str, *names: str) -> str:
            return ", ".join(f"{n} {spread(rows, f'{n}_{kind}_{metric}')}" for n in names)

        every = ("none", *ARMS)
        return [
            Claim(
                "before, known wordings are answered right more often than new ones, by 3 points at least",
                f"known {told('known', 'accuracy', 'none')}; untouched {told('untouched', 'accuracy', 'none')}",
                gap("none") >= 0.03,
            ),
            Claim(
                "with the alignment of hidden states half of that gap is gone at least",
                f"untouched: {told('untouched', 'accuracy', *every)}; gap {gap('none'):.3f}, then {gap('hidden'):.3f}",
                gap("hidden") <= gap("none") / 2,
            ),
            Claim(
                "its spread over untouched wordings is at most 0.7 of that of the wordings alone",
                f"spread: {told('untouched', 'spread', *every)}",
                at("hidden", "untouched", "spread") <= 0.7 * at("wordings", "untouched", "spread"),
            ),
            Claim(
                "known wordings lose one point at most",
                f"known: {told('known', 'accuracy', *every)}",
                at("hidden", "known") >= at("none", "known") - 0.01,
            ),
            Claim(
                "most of what untouched wordings gain comes from the wordings alone",
                f"untouched: {told('untouched', 'accuracy', 'none', 'wordings', 'hidden')}",
                at("wordings", "untouched") - at("none", "untouched")
                >= (at("hidden", "untouched") - at("none", "untouched")) / 2,
                central=False,
            ),
        ]
