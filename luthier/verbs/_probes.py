"""The same questions to a model before and after its weights were written: what was merged or edited must say the same.

Probes are fixed texts: logits at every position, and the greedy continuation of models that write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.method import LuthierError
from luthier.core.subject import Prompt
from luthier.verbs.load import Loaded

PROBES = (
    "The morning train was late",
    "Question: What is the capital of the country? Answer:",
    "copy: a b c d ->",
    "1 + 2 =",
    "Once upon a time",
    "def first(items):\n    return",
)
"""Texts on which a model is compared before and after."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits, relative to the larger of 1 and the largest logit, that rounding in a dtype explains."""


class Differs(LuthierError):
    """What was written says something else than what it was made from. It was taken away again."""


@dataclass
class MergeCheck:
    """What a written model says against what it was made from, on the same probes.

    max_logit_difference   largest |difference| of logits;  same_text  greedy continuations are equal
    tolerance              what rounding explains;   kl  mean divergence from the model before an edit, where there is one
    """

    folder: str
    probes: int
    max_logit_difference: float
    same_text: bool
    tolerance: float
    kl: float | None = None

    @property
    def passed(self) -> bool:
        """Not for NaN. In half precision near-ties may fall the other way, so that texts decide in full precision only."""
        return self.max_logit_difference <= self.tolerance and (self.same_text or self.tolerance > 1e-2)

    def text(self) -> str:
        verdict = "says the same as what it was made from" if self.passed else "DIFFERS FROM WHAT IT WAS MADE FROM"
        moved = "" if self.kl is None else f"; {self.kl:.4f} nats a token from the first model"
        return (
            f"{self.folder}: {verdict} (largest logit difference {self.max_logit_difference:.1e}, allowed "
            f"{self.tolerance:.1e}, over {self.probes} probes, greedy text {'equal' if self.same_text else 'not equal'}{moved})"
        )

    def demand(self) -> None:
        """Raises Differs unless it passed."""
        if not self.passed:
            raise Differs(f"{self.text()}; nothing was written")


@dataclass
class Answer:
    """Logits (T, V) or (C,) of one probe, and the greedy continuation of models that write."""

    logits: Tensor
    text: Any


@torch.no_grad()
def ask(loaded: Loaded, probes: Sequence[Prompt] = PROBES) -> list[Answer]:
    """What the model says of each probe, a text or messages."""
    model, tokenizer, subject = loaded.model.eval(), loaded.tokenizer, loaded.subject()
    device, out = next(model.parameters()).device, []
    for probe in probes:
        ids = torch.tensor([subject.encode(probe)], dtype=torch.long, device=device)
        if not ids.shape[1]:
            continue
        extra = {"decoder_input_ids": ids} if loaded.task == "seq2seq_lm" else {}
        said, text = model(input_ids=ids, **extra), None
        logits = said.last_hidden_state if loaded.task == "embedding" else said.logits
        if loaded.task in ("causal_lm", "seq2seq_lm"):
            text = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            ).tolist()  # fmt: skip
        out.append(Answer(logits[0].float().cpu(), text))
    return out


def compare(folder: str, before: Sequence[Answer], after: Sequence[Answer], dtype: torch.dtype) -> MergeCheck:
    """`dtype`: that of the weights that were written."""
    gap = torch.stack([(a.logits - b.logits).abs().max() for a, b in zip(before, after, strict=True)]).max()
    largest = max(1.0, *(float(a.logits.abs().max()) for a in before))
    same = all(a.text == b.text for a, b in zip(before, after, strict=True))
    return MergeCheck(folder, len(before), float(gap), same, TOLERANCE.get(dtype, TOLERANCE[torch.float32]) * largest)


def divergence(before: Sequence[Answer], after: Sequence[Answer]) -> float:
    """Mean KL(before || after) in nats over the positions of all probes."""
    total, count = 0.0, 0
    for a, b in zip(before, after, strict=True):
        p, q = (x.logits.double().log_softmax(-1).flatten(0, -2) if x.logits.ndim > 1 else x.logits.double().log_softmax(-1)[None]
                for x in (a, b))  # fmt: skip
        total += float((p.exp() * (p - q)).sum())
        count += len(p)
    return max(0.0, total / count)
