"""transformers' own loss on every instruction with every response that was drawn, one by one."""

from __future__ import annotations

from typing import Any

import torch

from luthier.checks import evaluation
from luthier.checks._compare import require
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import items_of


@torch.no_grad()
def _mean_logp(subject: Any, prompt: str, response: str) -> float:
    before = subject.tokenizer(prompt)["input_ids"]
    ids = torch.tensor([subject.tokenizer(prompt + response)["input_ids"]])
    labels = ids.clone()
    labels[0, : len(before)] = -100
    return -float(subject.model(input_ids=ids, labels=labels).loss.double())


def oracle_transformers() -> None:
    scorer = method(__name__, responses=3)
    subject = evaluation.worlds(scorer)[0].real(4096)
    answers = [" maple river", " a garden", " the window", " cloud of amber and stone", " a garden", " river", " lake"]
    items = items_of([{"id": str(i), "prompt": f"question {'x' * i}:", "answer": a} for i, a in enumerate(answers)])
    others, wins, margin = scorer.drawn(items), [], []
    for item, drawn in zip(items, others):
        require(len(drawn) == 3 and item.reference not in drawn, f"{item.reference!r} is compared with {drawn}")
        true, *rest = [_mean_logp(subject, item.prompt, text) for text in [item.reference, *drawn]]
        wins.append(sum(true > s for s in rest) / 3)
        margin.append(sum(true - s for s in rest) / 3)
    found = scorer.ask(subject, items)
    equal(evaluation.value(scorer, found, "wins"), sum(wins) / len(wins), "wins")
    off = abs(evaluation.value(scorer, found, "margin") - sum(margin) / len(margin))
    require(off < 1e-4, f"the margin is off by {off:.2g} nats")
