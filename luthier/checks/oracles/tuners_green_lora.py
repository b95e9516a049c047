"""peft's own LoRA on the chosen matrices alone costs and learns what the choice says."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from luthier.checks import tuners
from luthier.checks._compare import close, require
from luthier.checks._models import WORLDS
from luthier.checks.oracles._tuners import method
from luthier.core.flops import counter
from luthier.core.logprobs import Scorer


def oracle_pairs_alone() -> None:
    """After the same steps the answers are those of peft's LoRA that was put on the chosen matrices only."""
    world, tuner = WORLDS[0], method(__name__)
    model = tuners.wrapped(tuner, world)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = tuners.loop(
        tuner, world, model, 6, per_device_train_batch_size=len(world.examples), learning_rate=0.003, max_grad_norm=0.0,
        adam_epsilon=1e-4,
    )  # fmt: skip
    run.fit()
    note: Any = run.selection.note
    chosen = [n.removeprefix("base_model.model.") for n in note["chosen"] if n != "head"]
    require(0 < len(chosen) < 14, f"{len(chosen)} of 14 pairs chosen")
    plain = get_peft_model(
        world.base(), LoraConfig(task_type="CAUSAL_LM", r=tuner.r, lora_alpha=tuner.alpha, target_modules=chosen)
    ).train()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(start[name] if name in start else start[name.replace(".weight", ".base_layer.weight")])
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], 0.003, weight_decay=0.1, eps=1e-4)
    for _ in range(6):
        optimizer.zero_grad()
        world.loss(plain).backward()
        optimizer.step()
    close(world.said(model), world.said(plain), "answers of the chosen pairs and of peft's LoRA there")


def oracle_budget() -> None:
    """The counted operations of the chosen step are within the share of the counted full step, and as announced."""
    tuner = method(__name__)
    for world in WORLDS:
        model = tuner.wrap(world.base(attn_implementation="eager"), world.task)  # one kernel, whatever moves
        run = tuners.loop(tuner, world, model, 1, per_device_train_batch_size=len(world.examples))
        run.fit()
        told: Any = run.selection.note
        batch = run._batch(run._chunks(0)[0], 0)
        scorer = Scorer(model.train()).warm()
        with counter() as spent:
            world.objective.compute(scorer, batch).sum.backward()
        ours = spent.get_total_flops()
        require(ours == told["forward_flops"] + told["backward_flops"], f"{world.label}: {ours} counted, {told}")
        require(ours <= tuner.budget * told["full_flops"], f"{world.label}: over budget")
