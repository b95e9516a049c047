"""By names alone: which tensors went back, how many of each kind, and the two ends share 0 and share 1."""

from __future__ import annotations

import re
from typing import Any

import torch

from luthier.checks._compare import require, same
from luthier.checks.edits import worlds
from luthier.core import catalog


def _method(**options: Any) -> Any:
    return catalog.load("edits", __name__.split("edits_")[-1])(**options)


def oracle_recount() -> None:
    """Llama: of four attention matrices two go back in every layer, of the feed-forward ones half in all, of norms one."""
    world = worlds(_method())[0]
    tuned, base = world.states()
    for seed in range(10):
        out = _method(seed=seed).apply([tuned, base], world.model())
        back = {n for n in out if torch.equal(out[n], base[n])}
        for name in set(out) - back:
            same(out[name], tuned[name], f"{name}, which did not go back")
        layers = {m[1] for n in out if (m := re.search(r"layers\.(\d+)\.", n))}
        for i in layers:
            mine = {n for n in back if f"layers.{i}." in n}
            require(
                sum("self_attn" in n for n in mine) == 2, f"layer {i}: not two of four attention matrices went back"
            )
            require(sum("layernorm" in n for n in mine) == 1, f"layer {i}: not one of two norms went back")
        require(
            sum("mlp" in n for n in back) == 3 * len(layers) // 2, "not half of the feed-forward matrices went back"
        )
        require(all("layers." in n for n in back), "something outside the layers went back")


def oracle_ends() -> None:
    """Share 0 is the tuned model, share 1 the base, to the last bit."""
    for world in worlds(_method()):
        states = world.states()
        for share, wanted in ((0.0, states[0]), (1.0, states[1])):
            out = _method(share=share).apply(states, world.model())
            for name, tensor in out.items():
                same(tensor, wanted[name], f"{world.label}: {name} at share {share}")
