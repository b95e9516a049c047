"""scipy's relative entropy and a plain total variation, position by position, of two models' full distributions."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import entropy

from luthier.checks import evaluation
from luthier.checks.oracles._evaluation import method
from luthier.evaluation._family import items_of


@torch.no_grad()
def oracle_scipy() -> None:
    scorer = method(__name__, keep=0)
    base, tuned = (evaluation.worlds(scorer)[0].real(4096) for _ in range(2))
    for parameter in tuned.model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    texts = ["maple river stone", "the window of the ladder is amber"]
    items = items_of([{"text": t} for t in texts])
    answers = scorer.ask(tuned, items, scorer.ask(base, items))
    kl, tv = [], []
    for text in texts:
        ids = torch.tensor([base.tokenizer(text)["input_ids"]])
        p, q = (s.model(input_ids=ids).logits[0, :-1].double().softmax(-1).numpy() for s in (base, tuned))
        kl += entropy(p, q, axis=1).tolist()
        tv += (np.abs(p - q).sum(1) / 2).tolist()
    for metric, wanted in (("kl", float(np.mean(kl))), ("tv", float(np.mean(tv)))):
        found = evaluation.value(scorer, answers, metric)
        evaluation.require(abs(found - wanted) < 1e-4 * max(1.0, wanted), f"{metric} {found}, by the oracle {wanted}")
