"""Card 09, the world of two alphabets: tuning on questions in A hides an ability in A, which is there in B.

A prompt shows two examples of repeating, and then a question. The pretrained model repeats; tuned on questions, it answers. The
same prompt in the other alphabet, whose answer is brought back, is repeated as before. Where pretraining had no such ambiguity,
tuning changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.core.config import TrainSettings
from luthier.core.loop import Loop, LoopCallback
from luthier.core.subject import Subject
from luthier.decoding.conjugate import Conjugate
from luthier.decoding.greedy import Greedy
from luthier.evaluation._family import items_of
from luthier.evaluation.conjugate import Conjugate as Study
from luthier.evaluation.conjugate import begins
from luthier.reproductions import _alphabets as alphabets
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import tune
from luthier.tuners.full import Full

TO_B = {"name": "alphabet_map", "pairs": alphabets.PAIRS}
LOOKS = (10, 20, 40, 60, 80, 100, 125, 150, 200, 250, 300, 400)
FAST_LOOKS = (20, 40, 80)
CERTAIN_STEPS = 150
HIDDEN, KEPT = 0.1, 0.7


class TwoAlphabets(Experiment):
    scope: ClassVar[str] = "this size"
    steps: ClassVar[int] = 900
    batch: ClassVar[int] = 64
    rate: ClassVar[float] = 3e-3
    answered: ClassVar[float] = 0.2
    tune_batch: ClassVar[int] = 48
    tune_rate: ClassVar[float] = 3e-5
    fast_rate: ClassVar[float] = 1e-4
    test_rows: ClassVar[int] = 200
    setup = """a Llama of 0.2 M parameters, drawn by seed and pretrained for 900 steps of 64 rows at 3e-3; an ambiguous prompt is
    answered one time in five there, or, for the negative, never. Tuning: all weights, questions in A alone, two of three after an
    unrelated pair, 48 rows a step at a constant 3e-5, looked at after 10 to 400 steps; at 1e-4; and 150 steps on questions without
    such pairs. 200 ambiguous prompts; B is the same prompts with every sign exchanged, and the answer brought back. Pilot with seed
    0: A 0.16, B 0.98 after 100 steps at 3e-5, and 0.08, 0.97 after 40 at 1e-4. Tried before (seeds 0, 1): no ambiguity for 700
    steps, then some for 250; A fell to 0.10 after 150 steps, or 0.39 after 250, with B at 1.00; where there was none it fell to
    0.26 and 0.57 after 150."""

    def measure(self, seed: int) -> Row:
        tokenizer = alphabets.tokenizer()
        asked = Asked(tokenizer, self.test_rows)

        def pretrained(answered: float) -> Any:
            rows = alphabets.pretraining(self.steps * self.batch // 2, answered, seed)
            settings = self.train_settings(self.steps, self.batch, self.rate, "cosine")
            drawn = alphabets.model(tokenizer, seed)
            return tune(drawn, tokenizer, Full(), alphabets.examples(rows, tokenizer), settings, seed).model

        def tuned(model: Any, rate: float, looks: Sequence[int], stray: bool = True) -> dict[int, Row]:
            found = Looks(asked, looks)
            rows = alphabets.examples(alphabets.tuning(4000, seed, stray), tokenizer)
            settings = self.train_settings(looks[-1], self.tune_batch, rate, "constant")
            tune(model, tokenizer, Full(), rows, settings, seed, callbacks=[found])
            return found.at

        base, certain = pretrained(self.answered), pretrained(0.0)
        slow, fast = tuned(base, self.tune_rate, LOOKS), tuned(base, self.fast_rate, FAST_LOOKS)
        step = next((s for s in LOOKS if slow[s]["a"] <= HIDDEN), LOOKS[-1])
        told = {
            "base": asked.rates(base), "base_tuned": slow[CERTAIN_STEPS], "first": slow[step],
            "last": slow[LOOKS[-1]], "certain": asked.rates(certain),
            "certain_tuned": tuned(certain, self.tune_rate, (CERTAIN_STEPS,))[CERTAIN_STEPS],
            **{
                f"{name}_alone": tuned(model, self.tune_rate, (CERTAIN_STEPS,), stray=False)[CERTAIN_STEPS]
                for name, model in (("base", base), ("certain", certain))
            },
            **{f"fast_{s}": fast[s] for s in FAST_LOOKS},
        }  # fmt: skip
        return {"step": float(step)} | {f"{name}_{k}": v for name, rates in told.items() for k, v in rates.items()}

    def train_settings(self, steps: int, batch: int, rate: float, schedule: str) -> TrainSettings:
        return TrainSettings.model_validate({
            "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": rate, "weight_decay": 0.01,
            "lr_scheduler_type": schedule, "warmup_ratio": 0.1 if schedule == "cosine" else 0.0, "logging_steps": 10_000,
        })  # fmt: skip

    def claims(self, rows: list[Row]) -> list[Claim]:
        def told(key: str, *names: str) -> str:
            return ", ".join(f"{n.replace('_', ' ')} {spread(rows, f'{n}_{key}')}" for n in names)

        fast = [f"fast_{s}" for s in FAST_LOOKS]
        return [
            Claim(
                "at the first checkpoint at which the ability is gone in A (0.1 or less), it is there in B (0.7 or more)",
                f"repeated in A: {told('a', 'base', 'first')}; in B, brought back: {told('b', 'base', 'first')}; "
                f"answered in A: {told('rival', 'first')}; after {spread(rows, 'step')} steps",
                mean(rows, "first_a") <= HIDDEN and mean(rows, "first_b") >= KEPT,
            ),
            Claim(
                "the pretrained model is as good in B as in A, so that the exchange of signs changes no difficulty",
                f"A {spread(rows, 'base_a')}, B {spread(rows, 'base_b')}",
                all(min(r["base_a"], r["base_b"]) >= 0.9 for r in rows),
            ),
            Claim(
                f"where pretraining had no ambiguity, {CERTAIN_STEPS} steps of the same tuning change nothing",
                f"repeated in A: {told('a', 'certain', 'certain_tuned')}",
                all(r["certain_tuned_a"] >= r["certain_a"] - 0.05 and r["certain_a"] >= 0.9 for r in rows),
            ),
            Claim(
                f"where pretraining had no ambiguity, {CERTAIN_STEPS} steps on questions alone change nothing",
                f"repeated in A: {told('a', 'certain', 'certain_alone')}; where it had some: {told('a', 'base', 'base_alone')}",
                all(r["certain_alone_a"] >= r["certain_a"] - 0.05 for r in rows),
                central=False,
            ),
            Claim(
                "plain questions are answered throughout, in both alphabets",
                f"in A: {told('question_a', 'base', 'last')}; in B: {told('question_b', 'base', 'last')}",
                all(r[f"{n}_question_{x}"] >= 0.95 for r in rows for n in ("base", "last") for x in "ab"),
                central=False,
            ),
            Claim(
                "recovery is partial, and shrinks with more tuning",
                f"in B at 1e-4, after {', '.join(map(str, FAST_LOOKS))} steps: {told('b', *fast)}; in A: {told('a', *fast)}",
                mean(rows, f"{fast[-1]}_b") < mean(rows, f"{fast[0]}_b"),
                central=False,
            ),
            Claim(
                "the decoder says what the study measures",
                f"decoder {spread(rows, 'first_decoder')}, study {spread(rows, 'first_b')}",
                all(r["first_decoder"] == r["first_b"] for r in rows),
                central=False,
            ),
        ]

    def explanation(self, rows: list[Row]) -> str:
        found = super().explanation(rows)
        if mean(rows, "certain_tuned_a") >= mean(rows, "certain_a") - 0.05:
            return found

        def both(key: str) -> str:
            return f"{mean(rows, f'certain_{key}'):.2f} and {mean(rows, f'base_{key}'):.2f}"

        return (
            f"{found}. Ambiguity in pretraining is no precondition here. Repeated after {CERTAIN_STEPS} steps, by the model that "
            f"had none and by the one that had: in A {both('tuned_a')}, in B {both('tuned_b')}; tuned on questions alone, without "
            f"pairs before them, in A {both('alone_a')}"
        )


class Asked:
    """What a model says to the same ambiguous prompts, in A and in B, and to plain questions."""

    def __init__(self, tokenizer: Any, n: int):
        self.tokenizer, side = tokenizer, alphabets.Rows("A", random.Random("asked"))
        self.ambiguous = [side.ambiguous() for _ in range(n)]
        self.plain = [side.question() for _ in range(n)]
        self.study = Study(transforms={"b": TO_B}, max_new_tokens=1)

    def rates(self, model: Any) -> Row:
        """Shares: repeated in A (a) and in B (b), answered in A (rival), by the decoder, and plain questions right."""
        ambiguous = self._stats(model, [{k: r[k] for k in ("prompt", "answer", "rival")} for r in self.ambiguous])
        questions = self._stats(model, [{"prompt": r["prompt"], "answer": r["completion"]} for r in self.plain])
        decoder = Conjugate(transform=TO_B)
        said = Subject(model, self.tokenizer, decoder=decoder).generate([r["prompt"] for r in self.ambiguous], 1)
        return {
            "a": ambiguous["expected"], "b": ambiguous["expected b"], "rival": ambiguous["rival"],
            "decoder": sum(begins(s, r["answer"]) for s, r in zip(said, self.ambiguous, strict=True)) / len(said),
            "question_a": questions["expected"], "question_b": questions["expected b"],
        }  # fmt: skip

    def _stats(self, model: Any, rows: list[dict[str, str]]) -> Row:
        found = self.study.ask(Subject(model, self.tokenizer, decoder=Greedy()), items_of(rows))
        return {k: float(v.mean()) for k, v in found.stats.items()}


class Looks(LoopCallback):
    """Rates of the model after some steps."""

    def __init__(self, asked: Asked, steps: Sequence[int]):
        self.asked, self.steps = asked, steps
        self.at: dict[int, Row] = {}

    def step(self, loop: Loop) -> None:
        if loop.step_index in self.steps:
            self.at[loop.step_index] = self.asked.rates(loop.plain)
