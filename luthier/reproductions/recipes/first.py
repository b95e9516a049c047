"""Card 15 on random small models: keys whose answers are drawn from known probabilities, so that no model can be certain.

A key between two words that mean nothing is followed by one of four answers. For half of the keys they have probabilities 0.60,
0.25, 0.10 and 0.05, for the others 0.97 and three times 0.01, in an order of the key's own. The words let a model learn single
rows by heart. Accuracy and calibration are those of the answer token alone, among the
four, on fresh draws; c is chosen on other draws again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.core.batch import TextExample
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import Objective
from luthier.core.references import References
from luthier.core.teacher import ask
from luthier.evaluation._family import softmax
from luthier.evaluation.calibration import calibration_stats, equal_width
from luthier.objectives.distill import Distill
from luthier.objectives.first import FIRST as Student
from luthier.objectives.sft import SFT
from luthier.recipes.first import divided, least, recalibrated
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.tuners.full import Full

PAD, BEGIN, ASKED, END, FIRST_ANSWER, FIRST_WORD, WORDS = 0, 1, 2, 3, 4, 8, 16
ANSWERS, FIRST_KEY = list(range(FIRST_ANSWER, FIRST_WORD)), FIRST_WORD + WORDS
OPEN, SURE = (0.60, 0.25, 0.10, 0.05), (0.97, 0.01, 0.01, 0.01)
TEACHERS = ("calibrated", "overtrained")


@dataclass(frozen=True)
class Draws:
    """Prompts (n, T) and the index of each one's answer (n,)."""

    prompts: np.ndarray
    answers: np.ndarray

    @property
    def examples(self) -> list[TextExample]:
        told = zip(self.prompts.tolist(), self.answers.tolist(), strict=True)
        counts = [False] * self.prompts.shape[1] + [True, True]
        return [TextExample(row, [*prompt, FIRST_ANSWER + a, END], counts) for row, (prompt, a) in enumerate(told)]


def world(keys: int, seed: int) -> Callable[[int, int], Draws]:
    """(draws a key, seed) to draws of one world."""
    rng = np.random.default_rng([seed, 0])
    p = np.array([rng.permutation(OPEN if k % 2 else SURE) for k in range(keys)])  # (keys, 4)

    def draw(n: int, part: int) -> Draws:
        rng = np.random.default_rng([seed, part])
        told = np.repeat(np.arange(keys), n)
        words = rng.integers(FIRST_WORD, FIRST_KEY, (2, len(told)))
        fixed = np.ones_like(told)
        prompts = np.stack([BEGIN * fixed, words[0], FIRST_KEY + told, words[1], ASKED * fixed], 1)
        return Draws(prompts, np.array([rng.choice(4, p=p[k]) for k in told]))

    return draw


class First(Experiment):
    seeds: ClassVar[int] = 3
    keys: ClassVar[int] = 300
    draws: ClassVar[int] = 3
    validation_draws: ClassVar[int] = 3
    test_draws: ClassVar[int] = 20
    batch: ClassVar[int] = 30
    teacher_width: ClassVar[int] = 96
    teacher_layers: ClassVar[int] = 2
    student_width: ClassVar[int] = 48
    student_layers: ClassVar[int] = 1
    teacher_rate: ClassVar[float] = 5e-4
    student_rate: ClassVar[float] = 1.5e-3
    calibrated_epochs: ClassVar[int] = 5
    overtrained_epochs: ClassVar[int] = 20
    student_epochs: ClassVar[int] = 30
    early_epochs: ClassVar[int] = 10
    k: ClassVar[int] = 5
    bins: ClassVar[int] = 10
    grid: ClassVar[tuple[float, ...]] = (1.0, 1.5, 2.0, 3.0)
    setup = """Random Llama models: teacher 2 layers of width 96 (0.27M), student 1 layer of width 48 with tied embeddings (42K).
    300 keys, 3 draws each, one of 16 words before and after the key, trained on the answer and the end, batch 30, AdamW, constant
    rate. Validation: 3 other draws a key, test: 20. Teacher at 5e-4 for 5 epochs (calibrated) or 20 (over-trained); students at
    1.5e-3 for 30 epochs, one-hot also for 10. Temperature on log-probabilities, T among 1, 1.5, 2 and 3. Pilots on seed 0
    (accuracy / ECE on test): without the words no model got beyond 0.13 of ECE, as 3 draws of one prompt have a spread of their
    own; with them one-hot students at 1.5e-3 have 0.70 / 0.07 after 10 epochs and 0.69 / 0.24 after 30, at 3e-3 0.71 / 0.06 and
    0.69 / 0.19; teachers at 5e-4 0.70 / 0.08 after 5, 0.71 / 0.12 after 6, 0.68 / 0.27 after 20; seed 1 after 5: 0.70 / 0.06."""

    def measure(self, seed: int) -> Row:
        draw = world(self.keys, seed)
        train, held, test = draw(self.draws, 1).examples, draw(self.validation_draws, 2), draw(self.test_draws, 3)
        out: Row = {}

        def tell(name: str, model: Any, change: Callable[[Tensor], Tensor] = divided(1.0)) -> None:
            found = self.judged(model, test, change)
            out.update({f"{name}_accuracy": found["accuracy"], f"{name}_ece": found["ece"]})

        tell("early", self.tuned(False, train, SFT(), self.early_epochs, seed))
        one_hot = self.tuned(False, train, SFT(), self.student_epochs, seed)
        tell("one_hot", one_hot)
        T = least([{"T": T, **self.judged(one_hot, held, divided(T))} for T in self.grid])["T"]
        out["post_hoc_T"] = T
        tell("post_hoc", one_hot, divided(T))
        for name, epochs in zip(TEACHERS, (self.calibrated_epochs, self.overtrained_epochs), strict=True):
            teacher = self.tuned(True, train, SFT(), epochs, seed)
            store = ask(teacher, train, self.k, PAD, size=256)
            out[f"{name}_captured"] = store.captured()["mean"]
            tell(f"{name}_teacher", teacher)
            rules = [Student("the teacher", self.k, "temperature", T) for T in self.grid]
            chosen = least([{"T": r.c, **self.judged(teacher, held, recalibrated(r))} for r in rules])["T"]
            out[f"{name}_T"] = chosen
            told = References(top=store.of(train))
            for rule in rules:
                if rule.c in (1.0, chosen):
                    student = self.tuned(False, train, rule, self.student_epochs, seed, told)
                    tell(f"{name}_first_1" if rule.c == 1 else f"{name}_first", student)
            if chosen == 1:
                out |= {f"{name}_first_{m}": out[f"{name}_first_1_{m}"] for m in ("accuracy", "ece")}
            full = self.tuned(
                False, train, Distill("the teacher"), self.student_epochs, seed, References(model=teacher)
            )
            tell(f"{name}_full", full)
        return out

    def tuned(
        self, large: bool, rows: Sequence[TextExample], objective: Objective, epochs: int, seed: int,
        references: References | None = None,
    ) -> Any:  # fmt: skip
        """A model from random weights, trained."""
        width, layers = (
            (self.teacher_width, self.teacher_layers) if large else (self.student_width, self.student_layers)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=FIRST_KEY + self.keys, hidden_size=width, intermediate_size=5 * width // 2,
                    num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=16,
                    tie_word_embeddings=not large, pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=END,
                )
            )  # fmt: skip
        settings = TrainSettings(
            num_train_epochs=epochs, per_device_train_batch_size=self.batch, logging_steps=10_000,
            learning_rate=self.teacher_rate if large else self.student_rate, lr_scheduler_type="constant",
        )  # fmt: skip
        tuner = Full()
        loop = Loop(
            tuner.wrap(model, "causal_lm", seed), tuner, objective, rows, settings, PAD, seed, references=references
        )
        loop.fit()
        return model.eval()

    @torch.no_grad()
    def judged(self, model: Any, draws: Draws, change: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Accuracy and ECE of the answer among the four, from logits that `change` was applied to."""
        prompts = torch.tensor(draws.prompts)
        scores = change(model(input_ids=prompts).logits[:, -1])[:, ANSWERS].double()
        stats = calibration_stats(list(softmax(scores.numpy())), draws.answers.tolist())
        told = {name: np.array(values) for name, values in stats.items()}
        ece = equal_width(told, np.ones((1, len(prompts))), self.bins)[0]
        return {"accuracy": float(told["accuracy"].mean()), "ece": float(ece)}

    def claims(self, rows: list[Row]) -> list[Claim]:
        students = [f"{t}_{x}" for t in TEACHERS for x in ("first", "first_1", "full")]
        ece = {n: mean(rows, f"{n}_ece") for n in ("one_hot", "post_hoc", *students)}
        accuracy = {n: mean(rows, f"{n}_accuracy") for n in ("one_hot", *(f"{t}_first" for t in TEACHERS))}

        def both(*names: str) -> str:
            return "; ".join(
                f"{n.replace('_', ' ')} {spread(rows, f'{n}_accuracy')} / {spread(rows, f'{n}_ece')}" for n in names
            )

        def values(key: str) -> str:
            return ", ".join(f"{r[key]:g}" for r in rows)

        return [
            Claim(
                "the five likeliest tokens hold more than 0.95 of either teacher's probability",
                ", ".join(f"{t} {spread(rows, f'{t}_captured')}" for t in TEACHERS),
                all(r[f"{t}_captured"] > 0.95 for r in rows for t in TEACHERS),
            ),
            Claim(
                "with the c that was chosen, ECE is at most half of the one-hot student's, and accuracy is not lower, by either "
                "teacher",
                f"accuracy / ECE: {both('one_hot', 'early', *(f'{t}_first' for t in TEACHERS))}",
                all(ece[f"{t}_first"] <= ece["one_hot"] / 2 and accuracy[f"{t}_first"] >= accuracy["one_hot"] for t in TEACHERS),
                headline=True,
            ),
            Claim(
                "without calibration five tokens are within 0.02 of the whole distribution's ECE",
                f"accuracy / ECE: {both(*(f'{t}_{x}' for t in TEACHERS for x in ('first_1', 'full')))}",
                all(abs(ece[f"{t}_first_1"] - ece[f"{t}_full"]) <= 0.02 for t in TEACHERS),
            ),
            Claim(
                "behind an over-trained teacher calibration halves the ECE at least, and the search leaves T = 1",
                f"teacher {both('overtrained_teacher')}; student {both('overtrained_first_1', 'overtrained_first')}; T "
                f"{values('overtrained_T')}",
                ece["overtrained_first"] <= ece["overtrained_first_1"] / 2 and all(r["overtrained_T"] != 1 for r in rows),
            ),
            Claim(
                "behind a calibrated teacher the search stays at T = 1",
                f"teacher {both('calibrated_teacher')}; T {values('calibrated_T')}",
                all(r["calibrated_T"] == 1 for r in rows),
            ),
            Claim(
                "a temperature on the one-hot student's own logits comes within 0.05 of FIRST's ECE; its accuracy is lower",
                f"accuracy / ECE: {both('post_hoc', *(f'{t}_first' for t in TEACHERS))}; T "
                f"{values('post_hoc_T')}",
                ece["post_hoc"] <= max(ece[f"{t}_first"] for t in TEACHERS) + 0.05
                and accuracy["one_hot"] < min(accuracy[f"{t}_first"] for t in TEACHERS),
                central=False,
            ),
        ]  # fmt: skip
