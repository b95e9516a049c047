"""A numpy network from what enters the feed-forward's first matrix to what leaves its last; and LoRA as a point of the space."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from luthier.checks._compare import close, differ
from luthier.checks._models import WORLDS
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._tuners import method, tensors_by_target, trained, worlds


def oracle_numpy() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        for name, tensors in tensors_by_target(model).items():
            dense.beside_feed_forward(plain, name, dense.network(tensors, tuner.act), tuner.scale)
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(plain), world.said(model), f"{world.label}: numpy and trained model")


@torch.no_grad()
def oracle_lora() -> None:
    """Without non-linearity and biases, beside the query matrix, it is peft's LoRA with alpha / r = s."""
    tuner = method(__name__, act="identity", biases=False, targets=("q",), scale=2.0)
    for world in (w for w in WORLDS if w.architecture in ("llama", "bert", "t5")):
        model = trained(tuner, world)
        found = tensors_by_target(model)
        config = LoraConfig(r=tuner.size, lora_alpha=int(tuner.scale * tuner.size), target_modules=sorted(found))
        theirs: Any = get_peft_model(world.base(), config).eval()
        for name, tensors in found.items():
            lora = theirs.get_base_model().get_submodule(name)
            lora.lora_A["default"].weight.copy_(tensors["down.weight"])
            lora.lora_B["default"].weight.copy_(tensors["up.weight"])
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        close(world.said(theirs), world.said(model), f"{world.label}: peft's LoRA and trained model")
