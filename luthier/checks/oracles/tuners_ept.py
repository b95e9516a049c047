"""A hand-built run on input embeddings in float64: fusion, projections and gate as loops over rows and subspaces."""

from __future__ import annotations

import math

import numpy as np

from luthier.checks._models import World
from luthier.checks.oracles._prompts import Built, hand_built
from luthier.checks.oracles._tuners import method


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def _prompt(t: dict[str, np.ndarray], source: np.ndarray, by_row: bool) -> np.ndarray:
    fused = []
    for row in t["rows"]:
        query, keys = (row, source) if "W_q" not in t else (row @ t["W_q"], source @ t["W_k"])
        looks = _softmax(np.array([query @ key for key in keys]) / math.sqrt(len(query)))
        fused.append(row + t["g"][0] * sum(w * d for w, d in zip(looks, source, strict=True)))
    mean = np.mean(fused, 0)
    out = []
    for row in fused:
        gate = _softmax((row if by_row else mean) @ t["W_g"] + t["b_g"])
        spaces = [np.maximum(row @ V, 0) @ U for V, U in zip(t["V"], t["U"], strict=True)]
        out.append(row + sum(w * s for w, s in zip(gate, spaces, strict=True)))
    return np.stack(out)


def _check(fusion: str, gate: str) -> None:
    def build(tensors: dict[str, np.ndarray], world: World) -> Built:
        source = 8.0 / math.sqrt(tensors["A"].shape[1]) * np.einsum("sr,rd->sd", tensors["A"], tensors["B"])
        return _prompt(tensors, source, gate == "token"), source

    hand_built(method(__name__, fusion=fusion, gate=gate), build)


def oracle_inputs_embeds() -> None:
    _check("plain", "prompt")


def oracle_options() -> None:
    _check("projected", "token")
