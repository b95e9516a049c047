"""transformers' own beam search, asked for all its sequences, and a loop over them."""

from __future__ import annotations

from typing import Any

import torch

from luthier.checks import evaluation
from luthier.checks._compare import require
from luthier.checks.evaluation import value
from luthier.checks.oracles._evaluation import equal, method
from luthier.core import catalog
from luthier.evaluation._family import items_of

BEAMS, LENGTH = 5, 4


def oracle_transformers_beams() -> None:
    scorer = method(__name__, k=(1, 2, 5), max_new_tokens=LENGTH)
    subject = evaluation.worlds(scorer)[0].real(4096)
    subject.decoder = catalog.load("decoding", "beam")(num_beams=BEAMS)
    prompts = [f"question {'x' * i}:" for i in range(6)]
    ranked = [_beams(subject, p) for p in prompts]
    # the answer of item i is the candidate at place i, so that every rank occurs; that of the last item is none of them
    answers = [texts[i] if i < len(texts) else "none of these" for i, texts in enumerate(ranked)]
    items = items_of(
        [{"id": str(i), "prompt": p, "answer": f" {a}\n"} for i, (p, a) in enumerate(zip(prompts, answers))]
    )
    found = scorer.ask(subject, items)
    require(found.outputs == subject.generate(prompts, LENGTH), "the first candidate is not what is generated")
    for k in (1, 2, 5):
        kept = [list(dict.fromkeys(" ".join(t.split()) for t in texts))[:k] for texts in ranked]
        wanted = sum(" ".join(a.split()) in few for a, few in zip(answers, kept)) / len(prompts)
        equal(value(scorer, found, f"em@{k}"), wanted, f"em@{k}")


@torch.no_grad()
def _beams(subject: Any, prompt: str) -> list[str]:
    ids = torch.tensor([subject.encode(prompt)])
    out = subject.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=BEAMS, num_return_sequences=BEAMS, do_sample=False,
        max_new_tokens=LENGTH, length_penalty=1.0, early_stopping=False, eos_token_id=list(subject.stop_ids),
        pad_token_id=subject.pad_id,
    )  # fmt: skip
    return [subject.tokenizer.decode(row, skip_special_tokens=True) for row in out[:, ids.shape[1] :]]
