"""peft's own CPT where it is right (one adapter, fresh masks): what it says, its loss, and where its steps lead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from peft import CPTConfig, get_peft_model
from torch import Tensor, nn

from luthier.checks import tuners
from luthier.checks._compare import close, differ
from luthier.checks._models import WORLDS, World
from luthier.checks.oracles._prompts import Built, hand_built
from luthier.checks.oracles._tuners import method, trained
from luthier.core import catalog
from luthier.core.logprobs import Scorer

DECODERS = [w for w in WORLDS if w.kind == "decoder"]
GAMMA = 0.5


def _theirs(tuner: Any, world: World) -> Any:
    config = CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=list(tuner.ids), cpt_mask=[1] * len(tuner.ids),
        cpt_tokens_type_mask=list(tuner.types), opt_weighted_loss_type="decay", opt_loss_decay_factor=GAMMA,
        opt_projection_epsilon=tuner.epsilon_input, opt_projection_format_epsilon=tuner.epsilon_format,
    )  # fmt: skip
    return get_peft_model(world.base(), config).eval()


def _delta(tuner: Any, values: Tensor) -> Tensor:
    """Rows of the whole context (m, D) from those that move."""
    out, at = torch.zeros(len(tuner.ids), values.shape[1]), 0
    for j, type_ in enumerate(tuner.types):
        if type_ % 4 in (1, 2, 3):
            out[j] = values[at]
            at += 1
    return out


def _mine(model: nn.Module) -> Tensor:
    return next(p for n, p in model.named_parameters() if n.endswith("delta"))


def _asked(world: World) -> dict[str, Tensor]:
    """peft's inputs: counted tokens are labels of the row, the others its text."""
    rows = list(world.examples)
    batch = world.batch(rows)
    types, labels = torch.zeros_like(batch.ids), torch.full_like(batch.ids, -100)
    for b, e in enumerate(rows):
        for t, counts in enumerate(e.counts):
            types[b, t] = 4 if counts and t else 2
            labels[b, t] = e.ids[t] if counts and t else -100
    return {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "labels": labels, "input_type_mask": types}


def _scored(asked: dict[str, Tensor], tuner: Any) -> int:
    return int((asked["labels"] != -100).sum()) + len(asked["labels"]) * sum(t > 0 and t % 4 == 0 for t in tuner.types)


def oracle_peft() -> None:
    tuner = method(__name__)
    for world in DECODERS:
        model, theirs, m = trained(tuner, world), _theirs(tuner, world), len(tuner.ids)
        theirs.prompt_encoder["default"].delta_embedding.weight.data.copy_(_delta(tuner, _mine(model).detach()))
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        for example in world.examples:
            ids = torch.tensor([example.ids])
            mask = torch.ones_like(ids)
            with torch.no_grad():
                wanted = theirs(input_ids=ids, attention_mask=mask, labels=None).logits[:, m:]
                close(model(input_ids=ids, attention_mask=mask).logits, wanted, f"{world.label}: logits and peft's")


def oracle_peft_loss() -> None:
    """The loss, and the deltas after six steps on it, with balls small enough to be left."""
    tuner = method(__name__, epsilon_input=2.0, epsilon_format=1.0)
    objective = catalog.load("objectives", "context_sft")(decay=GAMMA)
    for world in DECODERS:
        model, theirs = tuners.wrapped(tuner, world).train(), _theirs(tuner, world).train()
        n = _scored(_asked(world), tuner)
        moving = theirs.prompt_encoder["default"].delta_embedding.weight
        steps = [torch.optim.Adam([p], lr=0.03) for p in (_mine(model), moving)]
        for _ in range(6):
            loss = objective.compute(Scorer(model), world.batch()).sum / n
            wanted = theirs(**_asked(world)).loss
            close(loss.detach(), wanted.detach(), f"{world.label}: loss and peft's")
            for value, step in zip((loss, wanted), steps, strict=True):
                step.zero_grad()
                value.backward()
                step.step()
        differ(_mine(model).detach(), torch.zeros_like(_mine(model)), f"{world.label}: deltas and none")
        gap = (_delta(tuner, _mine(model).detach()) - moving.detach()).abs().max().item()
        close(torch.tensor(gap), torch.tensor(0.0), f"{world.label}: deltas and peft's after six steps")


def oracle_inputs_embeds() -> None:
    """Projection and sum as a loop over tokens, on a plain base in float64."""
    tuner = method(__name__)

    def build(tensors: dict[str, np.ndarray], world: World) -> Built:
        table = world.base().get_input_embeddings().weight.detach().double().numpy()  # type: ignore[operator]
        rows, at = [], 0
        for token, type_ in zip(tuner.ids, tuner.types, strict=True):
            row = table[token]
            if type_ % 4 in (1, 2, 3):
                d = tensors["delta"][at]
                epsilon = (tuner.epsilon_input if type_ % 4 == 2 else tuner.epsilon_format) * math.sqrt(len(d) / 2048)
                row, at = row + d * epsilon / max(float(np.linalg.norm(d)), epsilon), at + 1
            rows.append(row)
        return np.stack(rows), None

    hand_built(tuner, build)
