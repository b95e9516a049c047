"""Card 39 on the sandbox: chains of thought, scored against the model's own wrong ones, with and without a constraint.

nano-1m is tuned on chains for longer sums until it is right about half of the time; it then writes eight chains for each
training question, which are marked by their answers. Every arm goes on from that model with the same questions and steps:
likelihood of the reference alone, the alignment term in its three forms beside it, and the alignment term alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from luthier import data, sandbox
from luthier.core.batch import GroupExample
from luthier.core.config import TrainSettings
from luthier.core.method import Objective
from luthier.core.subject import Subject
from luthier.decoding.nucleus import Nucleus
from luthier.objectives.aft import AFT
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._forgetting import exact
from luthier.reproductions._sequence import tune
from luthier.tuners.full import Full

ARMS: dict[str, AFT | None] = {
    "continued": None, "none": AFT(constraint="none"), "detached": AFT(constraint="detached"),
    "boundary": AFT(constraint="boundary", beta=0.15), "alone": AFT(constraint="none", sft_weight=0.0),
}  # fmt: skip


class Alignment(Experiment):
    scope: ClassVar[str] = "this size"
    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "sum10"
    questions: ClassVar[int] = 200
    first_steps: ClassVar[int] = 40
    first_rate: ClassVar[float] = 1e-3
    draws: ClassVar[int] = 8
    batch: ClassVar[int] = 8
    epochs: ClassVar[int] = 3
    learning_rate: ClassVar[float] = 2e-4
    test_rows: ClassVar[int] = 200
    setup = """nano-1m, which knows running sums modulo 10 of 2 to 4 numbers, tuned on chains for 5 to 8 numbers: 200 questions,
    40 steps of 16 rows, AdamW at 1e-3 with linear decay; 8 chains at temperature 1 for each question, those without an end left
    out, repeats counted once; then 3 epochs of 8 questions a step at 2e-4 for every arm. 200 unseen questions: greedy answers,
    and 8 chains of the first model for each, which every arm scores (mean log-probability a token)."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        source = f"sandbox:arithmetic?task={self.task}&part=long&n={self.questions}&seed={seed}"
        settings = TrainSettings(
            max_steps=self.first_steps, per_device_train_batch_size=16, learning_rate=self.first_rate
        )
        chains = data.prepare(source, tokenizer=tokenizer).examples
        first = tune(base, tokenizer, Full(), chains, settings, seed).model
        rows = sandbox.rows("arithmetic", task=self.task, part="long", n=self.questions, seed=seed)
        test = sandbox.rows("arithmetic", task=self.task, part="long", split="test", n=self.test_rows, seed=12)
        pool, unseen = self.pool(first, tokenizer, rows, seed), self.pool(first, tokenizer, test, 1000)
        usable = sum(len(set(e.scores or ())) > 1 for e in pool)
        out: Row = {"usable": usable / len(pool)} | self.score("first", first, tokenizer, test, unseen)
        for name, objective in ARMS.items():
            model = self.tuned(first, tokenizer, objective, pool, seed)
            out |= self.score(name, model, tokenizer, test, unseen)
        return out

    def pool(self, model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], seed: int) -> list[GroupExample]:
        """The reference and the model's own chains of each question, 1 where the answer is right."""
        subject = Subject(model, tokenizer, decoder=Nucleus(top_p=1.0), seed=seed)
        prompts = [r["prompt"] for r in rows for _ in range(self.draws)]
        said, judge = subject.generate(prompts, max_new_tokens=70, stop=["\n"]), sandbox.world("arithmetic").score
        out = []
        for at, row in enumerate(rows):
            own = [t for t in said[at * self.draws : (at + 1) * self.draws] if " so " in t]
            texts = list(dict.fromkeys([row["completion"], *own]))
            encoded = [subject.encode_pair(row["prompt"], f"{t}\n") for t in texts]
            scores = [1.0, *(float(judge(row, t)) for t in texts[1:])]
            out.append(GroupExample(at, list(encoded[0][0]), [list(answer) for _, answer in encoded], scores))
        return out

    def tuned(self, model: Any, tokenizer: Any, objective: AFT | None, pool: list[GroupExample], seed: int) -> Any:
        settings = TrainSettings(
            num_train_epochs=self.epochs, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
        )
        loss: Objective = objective or SFT()
        rows = pool if objective else [GroupExample(e.row, e.prompt, e.answers[:1], [1.0]) for e in pool]
        return tune(model, tokenizer, Full(), rows, settings, seed, objective=loss).model

    def score(
        self, name: str, model: Any, tokenizer: Any, test: list[dict[str, Any]], unseen: list[GroupExample]
    ) -> Row:
        """accuracy; assessment, the mean over questions of how many (right, wrong) pairs are ordered right; the score of
        wrong chains and the negative log-likelihood a token of the reference."""
        subject = Subject(model, tokenizer)
        pairs = [(e.prompt, a) for e in unseen for a in e.answers]
        means = iter([float(np.mean(logp)) for logp, _ in subject.pair_logp(pairs)])
        ordered, wrong, reference = list[float](), list[float](), list[float]()
        for e in unseen:
            s, right = np.array([next(means) for _ in e.answers]), np.array(e.scores) > 0
            reference.append(-s[0])
            if not right.all():
                ordered.append(float((s[right][:, None] > s[~right][None]).mean()))
                wrong.extend(s[~right])
        return {
            f"{name}_accuracy": exact(model, tokenizer, "arithmetic", test, 70),
            f"{name}_assessment": float(np.mean(ordered)),
            f"{name}_wrong": float(np.mean(wrong)),
            f"{name}_reference_nll": float(np.mean(reference)),
        }

    def claims(self, rows: list[Row]) -> list[Claim]:
        def told(key: str, *names: str) -> str:
            return ", ".join(f"{n} {spread(rows, f'{n}_{key}')}" for n in names)

        def at(name: str, key: str) -> float:
            return mean(rows, f"{name}_{key}")

        arms = tuple(ARMS)
        wrong = [at(n, "wrong") for n in ("none", "continued", "detached", "boundary")]
        return [
            Claim(
                "before alignment wrong chains often look better than right ones (assessment misalignment)",
                f"share of pairs ordered right: {told('assessment', 'first')}; right answers: {told('accuracy', 'first')}",
                at("first", "assessment") < 0.9,
            ),
            Claim(
                "wrong chains fall lowest without a constraint, then with likelihood alone, detached, boundary",
                f"mean log-probability a token of wrong chains: {told('wrong', *arms)}",
                wrong == sorted(wrong),
                headline=True,
            ),
            Claim(
                "the alignment term alone degrades the model most: the reference's loss at least doubles",
                f"reference, nats a token: {told('reference_nll', *arms)}",
                at("alone", "reference_nll") > 2 * at("continued", "reference_nll"),
            ),
            Claim(
                "both constraints keep the reference likelier than the unconstrained term does",
                f"reference, nats a token: {told('reference_nll', 'none', 'detached', 'boundary')}",
                max(at(n, "reference_nll") for n in ("detached", "boundary")) < at("none", "reference_nll"),
            ),
            Claim(
                "alignment makes right chains the better looking ones more often than likelihood alone",
                f"share of pairs ordered right: {told('assessment', *arms)}",
                max(at(n, "assessment") for n in ("detached", "boundary")) > at("continued", "assessment"),
                central=False,
            ),
            Claim(
                "AFT answers better than likelihood alone at equal steps, as the paper finds at 7 billion parameters",
                f"right answers: {told('accuracy', *arms)}",
                max(at(n, "accuracy") for n in ("detached", "boundary")) > at("continued", "accuracy"),
                central=False,
            ),
        ]
