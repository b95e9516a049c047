"""peft's AdaLoRA over a run of the core's loop, and the penalty through a bare loop."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor

from luthier.checks import tuners
from luthier.checks._compare import close, require
from luthier.checks._models import WORLDS, World
from luthier.checks.oracles._tuners import dense, method
from luthier.tuners.adalora import Triplets

STEPS = 20
SETTINGS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.0, "eps": 1e-6}


def oracle_dense_formula() -> None:
    tuner = method(__name__)
    dense(tuner, lambda W, t: W + tuner.alpha / tuner.r * (t["P"] * t["e"]) @ t["Q"])


def _looped(tuner: Any, world: World) -> tuple[Any, Any]:
    """The wrapped model as it starts, and after a run of the core's loop."""
    model = tuners.wrapped(tuner, world)
    start = copy.deepcopy(model)
    tuners.loop(
        tuner, world, model, STEPS, per_device_train_batch_size=len(world.examples), learning_rate=SETTINGS["lr"],
        weight_decay=0.0, max_grad_norm=0.0, adam_epsilon=SETTINGS["eps"],
    ).fit()  # fmt: skip
    return start, model


def _parts(model: Any) -> dict[str, Triplets]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Triplets)}


def oracle_peft() -> None:
    """Without the penalty: the same factors after every kind of step, the same ranks at the end."""
    tuner, world = method(__name__, orthogonality=0.0, warm=0.2, last=0.3, every=2), WORLDS[0]
    start, model = _looped(tuner, world)
    config = AdaLoraConfig(
        init_r=tuner.r, target_r=tuner.target, lora_alpha=tuner.alpha, lora_dropout=0.0, tinit=4, tfinal=6, deltaT=tuner.every,
        beta1=tuner.beta1, beta2=tuner.beta2, orth_reg_weight=0.0, total_step=STEPS, target_modules=["q_proj", "v_proj"],
    )  # fmt: skip
    theirs: Any = get_peft_model(world.base(), config)
    names = {n.replace(".luthier_adalora_parts.default", ""): part for n, part in _parts(start).items()}
    tensors = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, part in names.items():
            tensors[f"{name}.lora_A.default"].copy_(part.Q)
            tensors[f"{name}.lora_B.default"].copy_(part.P)
            tensors[f"{name}.lora_E.default"].copy_(part.e[:, None])
    moving = [p for p in theirs.parameters() if p.requires_grad]
    optimizer, batch = torch.optim.AdamW(moving, **SETTINGS), world.batch()
    theirs.train()
    for step in range(1, STEPS + 1):
        world.loss(theirs, batch).backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    ranks = []
    for name, part in _parts(model).items():
        at = name.replace(".luthier_adalora_parts.default", "")
        for mine, other in ((part.Q, "A"), (part.P, "B"), (part.e[:, None], "E")):
            close(mine.detach(), tensors[f"{at}.lora_{other}.default"].detach(), f"{at} and peft's {other}")
        ranks.append(int((part.e != 0).sum()))
    require(sum(ranks) == tuner.target * len(ranks), f"ranks {ranks} for a budget of {tuner.target} a matrix")
    require(len(set(ranks)) > 1, f"every matrix has {ranks[0]} ranks: nothing moved between them")


def oracle_penalty() -> None:
    """The penalty as part of the loss, in a bare loop; the loop adds it once, however a step is split."""
    tuner, world = method(__name__, target=4, orthogonality=0.3), WORLDS[0]  # all ranks stay
    start, model = _looped(tuner, world)
    batch = world.batch()
    optimizer = torch.optim.AdamW([p for p in start.parameters() if p.requires_grad], **SETTINGS)
    start.train()
    for _ in range(STEPS):
        loss: Tensor = world.loss(start, batch)
        for part in _parts(start).values():
            for gram in (part.P.T @ part.P, part.Q @ part.Q.T):
                loss = loss + 0.3 * (gram - torch.eye(tuner.r)).pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    split = tuners.wrapped(tuner, world)
    tuners.loop(
        tuner, world, split, STEPS, per_device_train_batch_size=1, gradient_accumulation_steps=len(world.examples),
        learning_rate=SETTINGS["lr"], weight_decay=0.0, max_grad_norm=0.0, adam_epsilon=SETTINGS["eps"],
    ).fit()  # fmt: skip
    for name, part in _parts(model).items():
        for key in ("P", "e", "Q"):
            wanted = getattr(_parts(start)[name], key).detach()
            close(getattr(part, key).detach(), wanted, f"{name}.{key} and the bare loop's")
            close(getattr(_parts(split)[name], key).detach(), wanted, f"{name}.{key} in micro-batches of one")
