"""Tune on a sequence task that pretraining never showed, then ask for what pretraining taught: facts and copying."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch

from luthier import data, sandbox
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import Tuner
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Experiment


class Forgetting(Experiment):
    """Facts are asked in the wording of pretraining; the new task is scored by exact match and by tokens."""

    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "mirror"
    steps: ClassVar[int] = 250
    batch: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 2.5e-3
    facts: ClassVar[int] = 300
    test_rows: ClassVar[int] = 200

    def base(self) -> tuple[Any, Any]:
        return sandbox.load(self.model)

    def tuned(self, base: Any, tokenizer: Any, tuner: Tuner, seed: int) -> Any:
        """A copy of the base after tuning."""
        train = data.prepare(f"sandbox:sequence?task={self.task}&n=2000&seed={seed}", tokenizer=tokenizer).examples
        model = tuner.wrap(copy.deepcopy(base), "causal_lm", seed)
        settings = TrainSettings(
            max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
        )
        Loop(model, tuner, SFT(), train, settings, tokenizer.pad_token_id, seed).fit()
        return model.eval()

    def facts_kept(self, model: Any, tokenizer: Any) -> float:
        rows = sandbox.rows("facts", task="verbatim", part="known", n=self.facts, seed=11)
        return exact(model, tokenizer, "facts", rows, 8)

    def skill_kept(self, model: Any, tokenizer: Any, task: str) -> float:
        rows = sandbox.rows("sequence", task=task, split="test", n=self.test_rows, seed=13)
        return exact(model, tokenizer, "sequence", rows, 16)

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        rows = sandbox.rows("sequence", task=self.task, split="test", n=self.test_rows, seed=12)
        return {
            "facts": self.facts_kept(model, tokenizer),
            "task": exact(model, tokenizer, "sequence", rows, 16),
            "token_accuracy": token_accuracy(model, tokenizer, rows),
        }


def exact(model: Any, tokenizer: Any, world: str, rows: list[dict[str, Any]], limit: int) -> float:
    subject = Subject(model, tokenizer, decoder=Greedy())
    texts = subject.generate([r["prompt"] for r in rows], max_new_tokens=limit, stop=["\n"])
    judge = sandbox.world(world).score
    return sum(judge(r, t) for r, t in zip(rows, texts, strict=True)) / len(rows)


@torch.no_grad()
def token_accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of answer tokens that are the likeliest given the true past."""
    subject = Subject(model, tokenizer)
    pairs = [subject.encode_pair(r["prompt"], r["completion"]) for r in rows]
    best = [hit for _, hit in subject.pair_logp(pairs)]
    return float(sum(h.sum() for h in best) / sum(len(h) for h in best))
