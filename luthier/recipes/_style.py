"""Style leak: whether a model tuned on one narrow domain writes as that domain does where the instruction is far from it.

    x_i = cos(e(instruction_i), mean of e(instructions of the domain))       how near the question is
    y_i = cos(e(answer_i), mean of e(responses of the domain))               how near the answer is

    follows  correlation of x and y over the test instructions: the style comes where it is asked for
    far      mean of y over the half of the instructions with the smallest x: what leaks where it is not

e is a sentence embedder's vector. Compared are the model tuned on the domain and the one tuned on all instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def nearness(vectors: NDArray, domain: NDArray) -> NDArray:
    """Cosine (n,) of vectors (n, D) with the mean of a domain's vectors (m, D), each of length one."""
    units, known = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (vectors, domain))
    centre = known.mean(0)
    return units @ (centre / max(float(np.linalg.norm(centre)), 1e-12))


def leak(asked: NDArray, answered: NDArray) -> dict[str, float | None]:
    """`follows` (None where either never varies), `far` and the mean `near` over the other half, from x and y (n,)."""
    order = asked.argsort(kind="stable")
    half = max(1, len(order) // 2)
    varies = asked.std() > 1e-9 and answered.std() > 1e-9
    return {
        "follows": float(np.corrcoef(asked, answered)[0, 1]) if varies else None,
        "far": float(answered[order[:half]].mean()), "near": float(answered[order[-half:]].mean()),
    }  # fmt: skip


def asked_by(prompt: Any) -> str:
    """What the user says last; a plain prompt is that as a whole."""
    if isinstance(prompt, str):
        return prompt
    return next((str(m["content"]) for m in reversed(prompt) if m["role"] == "user"), "")


def told_style(
    encoder: Any, domain: Sequence[Any], items: Sequence[Any], outputs: dict[str, list[str]]
) -> dict[str, Any]:
    """The table of a domain: `leak` of each arm's outputs to the items. `domain` are items with prompt and reference."""

    def vectors(texts: list[str]) -> NDArray:
        return np.asarray(encoder.embeddings(texts), dtype=np.float64)

    near = nearness(vectors([asked_by(i.prompt) for i in items]), vectors([asked_by(i.prompt) for i in domain]))
    style = vectors([str(i.reference) for i in domain])
    return {arm: leak(near, nearness(vectors(said), style)) for arm, said in outputs.items()}
