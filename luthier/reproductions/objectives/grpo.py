"""Cards 47 and 49 on the sandbox: a model that was shown a few solutions, then rewarded by an exact checker.

Running maxima of five to eight numbers, longer than pretraining had. Fine-tuning on solutions makes the model that both
arms start from: GRPO with a pull towards it, and without one. Likelihood of solutions for as many further steps is the
comparison that is fair to it. Scores are of drawn and of likeliest answers to unseen rows; the divergence is that of a drawn
answer from the model that both arms started from, in nats.
"""

from __future__ import annotations

from typing import Any, ClassVar

from luthier import data, sandbox
from luthier.core.config import RolloutSettings, TrainSettings
from luthier.core.method import Decoder
from luthier.core.rollouts import Rollouts
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.decoding.nucleus import Nucleus
from luthier.objectives.grpo import GRPO
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import tune
from luthier.tuners.full import Full
from luthier.verbs.rewards import reward_of


class CheckedAnswers(Experiment):
    scope: ClassVar[str] = "this size and length"
    model: ClassVar[str] = "nano-1m"
    source: ClassVar[str] = "sandbox:arithmetic?task=max&part=long"
    sft_rows: ClassVar[int] = 100
    sft_steps: ClassVar[int] = 25
    sft_learning_rate: ClassVar[float] = 3e-4
    steps: ClassVar[int] = 60
    prompts: ClassVar[int] = 8
    answers: ClassVar[int] = 8
    learning_rate: ClassVar[float] = 1e-4
    beta: ClassVar[float] = 0.1
    tokens: ClassVar[int] = 48
    test_rows: ClassVar[int] = 150
    setup = """nano-1m, every weight moving: 25 steps of 16 rows on 100 solutions at 3e-4, then 60 rounds of 8 answers to each
    of 8 prompts at a constant 1e-4, reward 1 for the right final number; 150 unseen rows, one drawn answer each."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        rows = data.prepare(f"{self.source}&n={self.sft_rows}&seed={seed}", tokenizer=tokenizer).examples
        prompts = data.prepare(f"{self.source}&n=600&seed={seed + 100}", tokenizer=tokenizer, type="prompts").examples
        shown = TrainSettings(
            max_steps=self.sft_steps, per_device_train_batch_size=16, learning_rate=self.sft_learning_rate
        )
        rewarded = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=self.prompts, learning_rate=self.learning_rate,
            lr_scheduler_type="constant",
        )  # fmt: skip
        sft = tune(base, tokenizer, Full(), rows, shown, seed).model
        arms: dict[str, Any] = {"sft": sft, "sft_longer": tune(sft, tokenizer, Full(), rows, rewarded, seed).model}
        for name, beta in (("grpo", self.beta), ("no_pull", 0.0)):
            settings = RolloutSettings(
                reward={"world": "arithmetic"}, answers=self.answers, max_new_tokens=self.tokens, stop=["\n"]
            )
            rollouts = Rollouts(settings, Nucleus(top_p=1.0), tokenizer, reward_of(settings.reward))
            arms[name] = tune(
                sft, tokenizer, Full(), prompts, rewarded, seed, objective=GRPO(beta=beta), rollouts=rollouts
            ).model
        out: Row = {"base_drawn": self.drawn(base, base, tokenizer)[0]}
        for name, model in arms.items():
            out[f"{name}_drawn"], out[f"{name}_kl"] = self.drawn(model, sft, tokenizer)
            out[f"{name}_likeliest"] = self.score(model, tokenizer, Greedy())
        return out

    def test(self) -> list[dict[str, Any]]:
        return sandbox.rows("arithmetic", task="max", part="long", split="test", n=self.test_rows, seed=12)

    def score(self, model: Any, tokenizer: Any, decoder: Decoder) -> float:
        subject, rows = Subject(model, tokenizer, decoder=decoder), self.test()
        said = subject.generate([r["prompt"] for r in rows], max_new_tokens=self.tokens, stop=["\n"])
        return sum(sandbox.world("arithmetic").score(r, s) for r, s in zip(rows, said, strict=True)) / len(rows)

    def drawn(self, model: Any, start: Any, tokenizer: Any) -> tuple[float, float]:
        """Score of one drawn answer a row, and how much likelier it is under `model` than under `start`, in nats."""
        subject = Subject(model, tokenizer, decoder=Nucleus(top_p=1.0))
        ids = [subject.encode(r["prompt"]) for r in self.test()]
        said = [g.ids for g in subject.generations(ids, self.tokens, ["\n"], with_end=True)]
        pairs = list(zip(ids, said, strict=True))
        own, other = ([float(p.sum()) for p, _ in Subject(m, tokenizer).pair_logp(pairs)] for m in (model, start))
        kl = sum(a - b for a, b in zip(own, other, strict=True)) / len(pairs)
        return self.score(model, tokenizer, Nucleus(top_p=1.0)), kl

    def claims(self, rows: list[Row]) -> list[Claim]:
        return [
            Claim(
                "GRPO scores at least 0.1 above the fine-tuned model that it started from (drawn answers)",
                f"grpo {spread(rows, 'grpo_drawn')}, start {spread(rows, 'sft_drawn')}, base {spread(rows, 'base_drawn')}; "
                f"likeliest answers: {spread(rows, 'grpo_likeliest')} and {spread(rows, 'sft_likeliest')}",
                mean(rows, "grpo_drawn") >= mean(rows, "sft_drawn") + 0.1,
            ),
            Claim(
                "at a divergence of at most 10 nats an answer",
                f"{spread(rows, 'grpo_kl')}",
                mean(rows, "grpo_kl") <= 10,
            ),
            Claim(
                "without the pull the divergence is larger",
                f"without {spread(rows, 'no_pull_kl')}, with {spread(rows, 'grpo_kl')}; scores "
                f"{spread(rows, 'no_pull_drawn')} and {spread(rows, 'grpo_drawn')}",
                mean(rows, "no_pull_kl") > mean(rows, "grpo_kl"),
            ),
            Claim(
                "GRPO scores above likelihood of the same few solutions for as many further steps",
                f"grpo {spread(rows, 'grpo_drawn')}, likelihood {spread(rows, 'sft_longer_drawn')}",
                mean(rows, "grpo_drawn") > mean(rows, "sft_longer_drawn"),
                central=False,
            ),
        ]
