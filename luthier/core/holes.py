"""Holes in what a model reads: some tokens of a batch replaced, hidden from the others or changed in their embedding.

Which tokens is drawn per data row (`dig`), so that no split, order or packing of a step changes it; what only the model can
tell is left to the moment it runs (`filled`). What is predicted stays as it is.

    mask      the mask token; where there is none, the mean row of the embedding table
    random    an ordinary token, each as likely as another
    drop      what was there, but no token attends to it: its own place alone still carries it
    zero      an embedding of zeros
    noise     what was there, with uniform noise on it: alpha / sqrt(L D) (-1, 1), as NEFTune's
    argmax    the token that the model itself, reading without holes, finds likeliest there
    sample    a token drawn from that distribution
    mixture   keep E[x] + (1 - keep) sum_v p_v E[v]            E (V, D) embedding table, p (V,) that distribution

M holes, N scored tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from luthier.core.batch import Batch, positions_from_mask
from luthier.core.logprobs import Columns, Scorer
from luthier.core.noise import changed_embeddings, embedding_weight, uniform_noise

Kind = Literal["mask", "random", "drop", "zero", "noise", "argmax", "sample", "mixture"]
PREDICTED = ("argmax", "sample", "mixture")
"""Kinds that are what the model says itself: for places that are predicted."""


class Holes(NamedTuple):
    """Of one grid of ids, by name: flat places (M,), random numbers (M,), which scored tokens (M,) they are; a key."""

    grid: str
    at: Tensor
    u: Tensor
    scored: Tensor
    key: int

    def to(self, device: torch.device) -> Holes:
        return self._replace(at=self.at.to(device), u=self.u.to(device), scored=self.scored.to(device))


@dataclass(frozen=True)
class Filling:
    """What stands in the holes: `kind` and its numbers. `mask_id` -1: no mask token; `special`: never drawn."""

    kind: Kind
    mask_id: int = -1
    special: tuple[int, ...] = ()
    vocabulary: int = 0
    alpha: float = 5.0
    keep: float = 0.7

    def in_ids(self, batch: Batch, h: Holes) -> Batch:
        """The batch with what can be done to ids and masks."""
        if self.kind == "mask" and self.mask_id >= 0:
            return _put(batch, h, torch.full_like(h.at, self.mask_id))
        if self.kind == "random":
            ordinary = torch.from_numpy(np.setdiff1d(np.arange(self.vocabulary), self.special))
            return _put(batch, h, ordinary[(h.u * len(ordinary)).long()])
        return _unseen(batch, h) if self.kind == "drop" else batch

    def said(self, scorer: Scorer, batch: Batch, h: Holes) -> Tensor:
        """What the model itself puts there: ids (M, 1), or mean embeddings (M, D)."""
        assert batch.target is not None
        u = torch.zeros(len(batch.target), dtype=h.u.dtype, device=h.u.device).index_put((h.scored,), h.u)

        def function(logits: Tensor, which: Tensor) -> Columns:
            if self.kind == "argmax":
                return (logits.argmax(-1),)
            p = logits.double().softmax(-1)
            if self.kind == "sample":
                return ((p.cumsum(-1) < u[which, None]).sum(-1).clamp(max=p.shape[-1] - 1),)
            table = embedding_weight(scorer.plain)
            return (p.to(table.dtype) @ table[: p.shape[-1]]).unbind(-1)

        with torch.no_grad():  # the function is told which scored tokens it is given
            columns = scorer.read(replace(batch, target=torch.arange(len(u), device=u.device)), function)
        return torch.stack(columns, -1)[h.scored]

    def embedding(self, scorer: Scorer, batch: Batch, h: Holes, was: Tensor, said: Tensor | None) -> Tensor:
        """New embeddings (M, D) of the holes for those that were there."""
        if said is not None:
            return self.keep * was + (1 - self.keep) * said.to(was)
        if self.kind == "noise":
            if h.grid == "decoder_ids":
                assert batch.decoder_ids is not None and batch.decoder_mask is not None
                batch = replace(batch, ids=batch.decoder_ids, mask=batch.decoder_mask, positions=None)
            return was + uniform_noise(batch, self.alpha, h.key, was.shape[-1], was.device).flatten(0, 1)[h.at].to(was)
        if self.kind == "mask":
            return embedding_weight(scorer.plain).detach().mean(0).to(was).expand_as(was)
        return torch.zeros_like(was)


def dig(batch: Batch, filling: Filling, share: float, key: int, everywhere: bool = False, least: int = 0) -> Batch:
    """The batch with holes: of the tokens that count, or of all but first ones, each with chance `share`.

    A row has `least` holes where the draw gives it fewer, as far as it has tokens.
    """
    holes = [_drawn(share, least, key + i, *told) for i, told in enumerate(_candidates(batch, everywhere))]
    for h in holes:
        batch = filling.in_ids(batch, h)
    return replace(batch, extras={**batch.extras, "holes": holes})


@contextmanager
def filled(scorer: Scorer, batch: Batch, filling: Filling) -> Iterator[Batch]:
    """The batch to run, while everything that could not be done to its ids is done to their embeddings."""
    with ExitStack() as stack:
        for h in batch.extras.get("holes", ()):
            h = h.to(batch.ids.device)
            said = filling.said(scorer, batch, h) if filling.kind in PREDICTED else None
            if said is not None and filling.kind != "mixture":
                batch, said = _put(batch, h, said[:, 0].long()), None
            elif (
                said is not None
                or filling.kind in ("zero", "noise")
                or (filling.kind == "mask" and filling.mask_id < 0)
            ):
                stack.enter_context(_changed(scorer, batch, filling, h, said))
        yield batch


def _changed(scorer: Scorer, batch: Batch, filling: Filling, h: Holes, said: Tensor | None) -> Any:
    def change(embedded: Tensor) -> Tensor:
        flat = embedded.flatten(0, 1)
        return flat.index_put((h.at,), filling.embedding(scorer, batch, h, flat[h.at], said)).view_as(embedded)

    return changed_embeddings(scorer.plain, getattr(batch, h.grid), change)


def _candidates(batch: Batch, everywhere: bool) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Of each grid of ids: its name, flat places, which scored tokens they are (-1: none), data rows; row by row."""
    assert batch.source is not None and batch.owner is not None
    if everywhere:
        place, row = (x.flatten() for x in batch.sequences())
        at = (place > 0).nonzero()[:, 0]
        yield "ids", at, torch.full_like(at, -1), row[at]
    if not everywhere or batch.decoder_ids is not None:
        name, mask = ("ids", batch.mask) if batch.decoder_mask is None else ("decoder_ids", batch.decoder_mask)
        at = batch.source + 1  # a token stands after the place that predicts it; a decoder never reads the last one
        read = (at % mask.shape[1] > 0) & mask.flatten()[at.clamp(max=mask.numel() - 1)]
        yield name, at[read], read.nonzero()[:, 0], batch.rows[batch.owner][read]


def _drawn(share: float, least: int, key: int, grid: str, at: Tensor, scored: Tensor, row: Tensor) -> Holes:
    rows, counts = row.unique_consecutive(return_counts=True)
    draws = [
        np.random.default_rng([key, r]).random((2, n)) for r, n in zip(rows.tolist(), counts.tolist(), strict=True)
    ]
    chance, u = torch.from_numpy(np.concatenate([np.zeros((2, 0)), *draws], 1))
    first = [d[0].argsort().argsort() < least for d in draws]  # the smallest chances of a row
    chosen = (chance < share) | torch.from_numpy(np.concatenate([np.zeros(0, dtype=bool), *first]))
    return Holes(grid, at[chosen], u[chosen], scored[chosen], key)


def _put(batch: Batch, h: Holes, new: Tensor) -> Batch:
    ids = getattr(batch, h.grid)
    return replace(batch, **{h.grid: ids.flatten().index_put((h.at,), new).view_as(ids)})


def _unseen(batch: Batch, h: Holes) -> Batch:
    """No token attends to the holes; positions are those of the text without them."""
    name = "mask" if h.grid == "ids" else "decoder_mask"
    mask = getattr(batch, name)
    seen = mask.flatten().index_fill(0, h.at, False).view_as(mask)
    if batch.sees is not None:
        return replace(batch, sees=batch.sees & seen[:, None, :])
    if batch.decoder_ids is None and batch.positions is None:
        batch = replace(batch, positions=positions_from_mask(mask))
    return replace(batch, **{name: seen})
