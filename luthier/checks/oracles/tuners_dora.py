"""The dense formula of the paper, in float64: m * V / ||V|| by output row, V = W + (alpha / r) B A."""

from __future__ import annotations

from torch import Tensor

from luthier.checks.oracles._tuners import dense, method


def oracle_dense_formula() -> None:
    tuner = method(__name__)

    def formula(W: Tensor, t: dict[str, Tensor]) -> Tensor:
        V = W + tuner.alpha / tuner.r * t["lora_B"] @ t["lora_A"]
        return t["lora_magnitude_vector"].reshape(-1, 1) * V / (V**2).sum(1, keepdim=True).sqrt()

    dense(tuner, formula)
