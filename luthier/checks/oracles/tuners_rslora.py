"""The dense formula of the paper, in float64, on the tensors that peft trained: W + (alpha / sqrt r) B A."""

from __future__ import annotations

from luthier.checks.oracles._tuners import dense, method


def oracle_dense_formula() -> None:
    tuner = method(__name__)
    scale = tuner.alpha / tuner.r**0.5
    dense(tuner, lambda W, t: W + scale * t["lora_B"] @ t["lora_A"])
