"""Replaced token detection against a float64 loop over single texts, with either generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.checks._compare import close, require
from luthier.checks._models import PAD, model_of, texts
from luthier.core import catalog
from luthier.core.batch import collate_text
from luthier.core.logprobs import Scorer

_NAME = __name__.rsplit("_", 1)[-1]


def equation(objective: Any, examples: Sequence[Any], policy: Any, reference: Any, batch: Any) -> tuple[Tensor, float]:
    generator = policy if objective.generator == "itself" else reference
    holes, width = batch.extras["holes"][0], batch.ids.shape[1]
    u = dict(zip(holes.at.tolist(), holes.u.tolist()))
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for b, e in enumerate(examples):
        counted = [t for t in range(1, len(e.ids)) if e.counts[t]]
        hidden = [t for t in counted if b * width + t in u]
        masked = [objective.mask_id if t in hidden else token for t, token in enumerate(e.ids)]
        logp = generator.logp(masked)
        shown = list(e.ids)
        for t in hidden:
            p = logp[t].detach().exp().clone()
            p[objective.mask_id] = 0
            reached, k = 0.0, 0
            while (reached := reached + float(p[k] / p.sum())) < u[b * width + t]:
                k += 1
            shown[t] = k
            if generator is policy:
                total = total - logp[t, e.ids[t]] * len(counted) / len(hidden)
        z = policy.model(input_ids=torch.tensor([shown])).logits[0, :, objective.mask_id]
        for t in counted:
            right = 1 / (1 + torch.exp(-z[t] if shown[t] != e.ids[t] else z[t]))
            total = total - objective.detection * torch.log(right)
        tokens += len(counted)
    return total, float(tokens)


def start(examples: Sequence[Any], outputs: int) -> float:
    return math.log(outputs) + catalog.load("objectives", _NAME).example().detection * math.log(2)


def oracle_untuned() -> None:
    """The generator is another model, and only the detector's term is left."""
    from luthier.checks.objectives import Plain, World

    objective = replace(catalog.load("objectives", _NAME).example(), generator="untuned")
    world = World("encoder", "bert", texts())
    model, other = world.model().double(), world.model(reference=True).double()
    batch = objective.view(collate_text(list(texts()), PAD), 0, 1, np.random.default_rng(2))
    found = objective.compute(Scorer(model, beside=other), batch).sum.detach()
    wanted, _ = equation(objective, texts(), Plain(model), Plain(other), batch)
    close(found, wanted.detach(), "loss with a frozen generator")


def oracle_electra() -> None:
    """The detector's term is the loss that transformers' ElectraForPreTraining computes from the same logits."""
    objective = replace(catalog.load("objectives", _NAME).example(), generator="untuned", detection=1.0)
    model = model_of("bert").double()
    plain = collate_text(list(texts()), PAD)
    batch = objective.view(plain, 0, 1, np.random.default_rng(2))
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    loss = objective.compute(Scorer(model, beside=model_of("bert").double()), batch)
    handle.remove()
    judged = torch.zeros(plain.ids.numel(), dtype=torch.bool)
    judged[batch.source] = True
    logits = model(input_ids=seen[-1], attention_mask=plain.mask.long()).logits[..., objective.mask_id]
    labels = (seen[-1] != plain.ids).double()
    require(bool(labels.sum() > 3), "hardly a token was replaced")
    wanted = torch.nn.BCEWithLogitsLoss()(logits.flatten()[judged], labels.flatten()[judged])
    close((loss.sum / loss.weight).detach(), wanted.detach(), "loss and ELECTRA's")
