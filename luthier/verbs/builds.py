"""Five ways to ship an adapter that was trained on a quantised base, against what training saw.

    W weights, Q(.) quantised and read back, D what the adapter adds

    served     Q(W) + D as two branches: the quantised base with the live adapter, what training saw
    kept       Q(W) + D in one matrix, in 16 bits: the same up to rounding
    original   W + D in 16 bits: another function, since D was fitted around Q(W)
    reloaded   Q(W + D): merged in full precision, saved, loaded as a quantised model again
    in place   Q(Q(W) + D): merged inside the quantised layer

Each is asked the same probes: KL(served || build) in nats a token, largest difference of logits, size, and whatever `measure`
asks. `ratio` is |D| / |W - Q(W)| (Frobenius) over the matrices that the adapter changes: where it is small, quantising again
can erase D.
Quantisation is computed in full precision (core/quantise.py); sizes are those of 16-bit numbers and of stored levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import base_transformer, weights
from luthier.core.config import ModelSettings
from luthier.core.method import LuthierError
from luthier.core.quantise import bits, quantised
from luthier.core.subject import Prompt
from luthier.verbs._probes import PROBES, ask, compare, divergence
from luthier.verbs.edit import merged
from luthier.verbs.load import Loaded, load

WAYS = {"served": (True, False, False), "kept": (True, True, False), "original": (False, True, False),
        "reloaded": (False, True, True), "in place": (True, True, True)}  # fmt: skip
"""Name: whether the base is quantised first, whether the adapter is merged, whether the result is quantised."""
FORMULAS = {
    "served": "Q(W) and D",
    "kept": "Q(W) + D",
    "original": "W + D",
    "reloaded": "Q(W + D)",
    "in place": "Q(Q(W) + D)",
}


@dataclass
class Build:
    """One way, against the served one. `figures` are what was measured besides."""

    name: str
    kl: float
    max_logit_difference: float
    same_text: bool
    megabytes: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Builds:
    """All of them, and |D| / |W - Q(W)| of every matrix that the adapter changes."""

    kind: str
    rows: list[Build]
    ratio: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Build:
        return next(r for r in self.rows if r.name == name)

    def text(self) -> str:
        head = f"{'build':10}{'weights':14}{'KL to served':>14}{'max |dlogit|':>14}{'same text':>11}{'MB':>10}"
        lines = [head + "".join(f"{name:>14}" for name in self.rows[0].figures)]
        for r in self.rows:
            text, more = "yes" if r.same_text else "no", "".join(f"{v:14.4f}" for v in r.figures.values())
            lines.append(
                f"{r.name:10}{FORMULAS[r.name]:14}{r.kl:14.6f}{r.max_logit_difference:14.4f}{text:>11}{r.megabytes:10.2f}{more}"
            )
        low, high = min(self.ratio.values()), max(self.ratio.values())
        return "\n".join(
            [*lines, f"|D| / |W - Q(W)| ({self.kind}): {low:.2f} to {high:.2f} over {len(self.ratio)} matrices"]
        )


def builds(
    source: str | Path | ModelSettings, kind: str = "nf4", probes: Sequence[Prompt] = PROBES,
    measure: Callable[[Loaded], dict[str, float]] = lambda made: {},
) -> Builds:  # fmt: skip
    """Compare the five ways for the adapter `source` and its base. Raises Refusal where it cannot be merged.

    An adapter that was trained on a rounded copy of W is given as `ModelSettings(model_name_or_path=W, adapter=FOLDER)`.
    """
    rows: list[Build] = []
    for name, way in WAYS.items():
        made, size = _made(source, kind, *way)
        said = ask(made, probes)
        if name == "served":
            wanted = said
            low = {n: w.clone() for n, w in _matrices(made.model).items()}
        elif name == "kept":
            both = _matrices(made.model)
            change = {n: float((both[n] - w).norm()) for n, w in low.items()}
        check = compare(name, wanted, said, torch.float32)
        told = (name, divergence(wanted, said), check.max_logit_difference, check.same_text, size)
        rows.append(Build(*told, measure(made)))
    error = {n: float((w - low[n]).norm()) for n, w in _matrices(load(source).model).items()}
    ratio = {n: change[n] / error[n] for n in low if change[n] > 0 < error[n]}
    if not ratio:
        where = source.adapter if isinstance(source, ModelSettings) else source
        raise LuthierError(f"{where}: this adapter changes no matrix of the layers: all builds are the base")
    return Builds(kind, rows, ratio)


def _made(source: str | Path | ModelSettings, kind: str, first: bool, merge: bool, after: bool) -> tuple[Loaded, float]:
    """A build and its size in megabytes."""
    loaded = load(source)
    if not hasattr(loaded.model, "merge_and_unload"):
        raise LuthierError(f"'{loaded.name}' is an ordinary model: builds compare ways to ship an adapter")
    if first:
        quantise(loaded.model, kind)
    if merge:
        loaded.model = base_transformer(merged(loaded))
    if after:
        quantise(loaded.model, kind)
    matrices = _matrices(loaded.model).values()
    rest = sum(p.numel() for p in loaded.model.parameters()) - sum(w.numel() for w in matrices)
    stored = sum(w.numel() * (bits(kind, w.shape[1]) if after or not merge else 16) for w in matrices)
    return loaded, (16 * rest + stored) / 8e6


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """The layers' matrices (outputs, inputs) by module, in place."""
    inner = base_transformer(model)
    out = {}
    for place in weights(inner).values():
        module: Any = inner.get_submodule(place.module)
        weight = getattr(module, "base_layer", module).weight.detach()
        out[place.module] = weight.T if place.transposed else weight
    return out


@torch.no_grad()
def quantise(model: nn.Module, kind: str) -> None:
    """Round the matrices of the layers in place, as `kind` holds them."""
    for weight in _matrices(model).values():
        weight.copy_(quantised(weight.contiguous(), kind))
