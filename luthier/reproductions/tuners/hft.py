"""Card 05 on the sandbox: tune on a new sequence task, then ask for the facts of pretraining.

Full fine-tuning against half fine-tuning (category and layer level) at equal steps, rate and data, and half-reset of the
fully tuned model. Facts are asked in the wording that pretraining uses; the new task is scored by token accuracy under
teacher forcing and by exact match.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch

from luthier import data, sandbox
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.edits.half_reset import HalfReset
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.tuners.full import Full
from luthier.tuners.hft import HFT


class HalfFineTuning(Experiment):
    seeds: ClassVar[int] = 3
    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "mirror"
    steps: ClassVar[int] = 250
    batch: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 2.5e-3
    facts: ClassVar[int] = 300
    test_rows: ClassVar[int] = 200
    setup = """nano-1m tuned on a sequence task that pretraining never showed, 250 steps of 32 rows, AdamW at 2.5e-3 with linear
    decay; then 300 pretrained facts and 200 unseen rows of the new task. Pilots with seed 0 (facts kept by full, half,
    half-reset): at 1.5e-3 0.63, 0.85, 0.77; at 2e-3 0.35, 0.83, 0.68; at 2.5e-3 0.34, 0.81, 0.61; at 3e-3 0.08, 0.77, 0.41.
    All learned the task."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        source = f"sandbox:sequence?task={self.task}&n=2000&seed={seed}"
        train = data.prepare(source, tokenizer=tokenizer).examples
        out: Row = {"base_facts": self._facts(base, tokenizer)}
        tuned: dict[str, Any] = {}
        for name, tuner in (("full", Full()), ("hft", HFT()), ("hft_layer", HFT(level="layer"))):
            model = tuner.wrap(copy.deepcopy(base), "causal_lm", seed)
            settings = TrainSettings(
                max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
            )
            Loop(model, tuner, SFT(), train, settings, tokenizer.pad_token_id, seed).fit()
            tuned[name] = model.eval()
            out |= {f"{name}_{k}": v for k, v in self._score(model, tokenizer).items()}
        reset = copy.deepcopy(base)
        reset.load_state_dict(HalfReset(seed=seed).apply([tuned["full"].state_dict(), base.state_dict()], base))
        return out | {f"half_reset_{k}": v for k, v in self._score(reset, tokenizer).items()}

    def _facts(self, model: Any, tokenizer: Any) -> float:
        rows = sandbox.rows("facts", task="verbatim", part="known", n=self.facts, seed=11)
        return _exact(model, tokenizer, "facts", rows, 8)

    def _score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        rows = sandbox.rows("sequence", task=self.task, split="test", n=self.test_rows, seed=12)
        return {
            "facts": self._facts(model, tokenizer),
            "task": _exact(model, tokenizer, "sequence", rows, 16),
            "token_accuracy": _token_accuracy(model, tokenizer, rows),
        }

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

    def explanation(self, rows: list[Row]) -> str:
        failed = [c.statement for c in self.claims(rows) if c.central and not c.holds]
        return f"at this size and rate these do not hold: {'; '.join(failed)}"


def _exact(model: Any, tokenizer: Any, world: str, rows: list[dict[str, Any]], limit: int) -> float:
    subject = Subject(model, tokenizer, decoder=Greedy())
    texts = subject.generate([r["prompt"] for r in rows], max_new_tokens=limit, stop=["\n"])
    judge = sandbox.world(world).score
    return sum(judge(r, t) for r, t in zip(rows, texts, strict=True)) / len(rows)


@torch.no_grad()
def _token_accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of answer tokens that are the likeliest given the true past."""
    subject = Subject(model, tokenizer)
    pairs = [subject.encode_pair(r["prompt"], r["completion"]) for r in rows]
    best = [hit for _, hit in subject.pair_logp(pairs)]
    return float(sum(h.sum() for h in best) / sum(len(h) for h in best))
