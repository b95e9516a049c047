"""Half fine-tuning against a brute-force recount of what may move, and against full fine-tuning at share 0."""

from __future__ import annotations

import random
import re

import torch

from luthier.checks import tuners
from luthier.checks._compare import require, same
from luthier.checks._models import WORLDS
from luthier.checks.oracles._tuners import bare_loop, method

PARTS = {
    "llama": (["q_proj", "k_proj", "v_proj", "o_proj"], ["up_proj", "gate_proj", "down_proj"]),
    "bert": (
        ["self.query", "self.key", "self.value", "attention.output.dense"],
        ["intermediate.dense", "output.dense"],
    ),
    "t5": (["SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"], ["wi", "wo"]),
}
"""Matrices of a layer by their names in the checkpoints, written down by hand."""


def oracle_recount() -> None:
    """By names alone, for many draws: two of four attention matrices stay in every layer, half of the feed-forward
    matrices in all, one norm of two; biases follow their matrix; whatever is no matrix or norm of a layer moves."""
    tuner = method(__name__)
    for world in (w for w in WORLDS if w.architecture in PARTS):
        attention, feed_forward = PARTS[world.architecture]
        for seed in range(12):
            model = world.base()
            selection = tuner.select(model, random.Random(seed))
            require(not selection.blocks, "blocks in a model without fused matrices")
            still = {n for n, _ in model.named_parameters()} - selection.whole
            layers: dict[str, list[str]] = {}
            for name in still:
                found = re.search(r"^(.*?\b(?:layers|layer|block)\.\d+)\.", name)
                require(found is not None, f"{name} is outside the layers and does not move")
                layers.setdefault(found[1], []).append(name)  # type: ignore[index]
            for layer, names in layers.items():
                held = [a for a in attention if any(re.search(rf"\.{re.escape(a)}\.weight$", n) for n in names)]
                require(len(held) == 2, f"{layer}: {held} stay still, not two of four")
                for name in (n for n in names if n.endswith(".bias")):
                    require(name.removesuffix("bias") + "weight" in names, f"{name} stays still without its matrix")
            in_ff = [
                n for n in still for f in feed_forward
                if re.search(rf"(?<!attention)\.{re.escape(f)}\.weight$", n) and "attention.output" not in n
            ]  # fmt: skip
            total = sum(f"{layer}." in n or n.startswith(layer) for layer in layers for n in in_ff)
            wanted = len(feed_forward) * len(layers) // 2
            require(total == wanted, f"{total} feed-forward matrices stay still in {len(layers)} layers, not {wanted}")


def oracle_full_at_zero() -> None:
    """Share 0 is full fine-tuning, step for step: the bare loop over all tensors."""
    for world in WORLDS[:2]:
        bare_loop(method(__name__, share=0.0), world, {n for n, _ in world.base().named_parameters()}, steps=5)


def oracle_moves_exactly_the_rest() -> None:
    """After steps with weight decay the tensors (and columns of fused ones) that moved are those that were drawn."""
    tuner = method(__name__)
    for world in WORLDS[:2]:
        model, base = tuners.wrapped(tuner, world), world.base()
        run = tuners.loop(tuner, world, model, 3)
        run.fit()
        drawn = run.selection
        for name, parameter in model.named_parameters():
            before = base.get_parameter(name)
            if name in drawn.blocks:
                dims = {d for d, _, _ in drawn.blocks[name]}
                require(len(dims) == 1, f"{name}: blocks along several dimensions")
                dim = dims.pop()
                inside = torch.zeros(parameter.shape[dim], dtype=torch.bool)
                for _, a, b in drawn.blocks[name]:
                    inside[a:b] = True
                moved = (
                    (parameter != before).movedim(dim, 0).flatten(1).any(1)
                    if parameter.ndim > 1
                    else parameter != before
                )
                require(not bool((moved & ~inside).any()), f"{name}: a frozen block moved")
                require(bool((moved & inside).any()), f"{name}: no drawn block moved")
            elif name in drawn.whole:
                require(not torch.equal(parameter, before), f"{name} was drawn but did not move")
            else:
                same(parameter.detach(), before.detach(), f"frozen {name}")
