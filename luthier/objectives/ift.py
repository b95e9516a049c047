"""IFT: supervised tuning in which inputs carry a little of the model's own predictions, and a token counts by what follows.

    e'_i = (1 - lambda) E(x_i) + lambda E(x^_i),    x^_i = argmax pi(. | x_<i)         input embeddings; E carries no gradient
    l_t  = - log pi(x_t | e'_<t)                                                       t = 1 .. n, the answer's tokens
    W_t  = sum over k >= t of gamma^(k - t) l_k / n,       w_t = n W_t / sum_j W_j

    loss = mean over sequences of 1/n sum_t w_t l_t

    mix       lambda, on the answer's tokens; prompts stay as they are.  mix_start: it grows from there to `mix` over the
              first `ramp` of the steps (none: constant).  mix_noise: lambda times 1 + mix_noise N(0, 1), held in [0, 1]
    rank      x^ is the rank-th likeliest token;  temperature  above 0: x^ is drawn instead
    decay     gamma
    source    what W adds up: loss, l / n;  logps, l;  mask, 1: position alone
    side      left: over what follows;  right: over what came before, and w is larger where W is smaller
    norm      w is n f(W) / sum f(W) with f(W) =  L1: W,  L2: W^2,  softmax: exp W,  log: log(1 + W)
    detach_weights   w carries no gradient
x^ comes from a first pass on the true tokens, without gradient; with mix = 0 there is none. E is the model's own table of
the moment: it follows a tied head, and stays as it is where the head is not tied. Without mixing and with equal weights
(source mask, decay 0) this is likelihood with a mean over sequences; decay 0 alone weighs each token by its own loss.
Start:      log V for a model that knows nothing.
Cost:       one more forward pass.
Paper:      Hua et al., 2024, "Intuitive Fine-Tuning: Towards Simplifying Alignment into a Single Process",
            arXiv:2405.11870; options and defaults as in the public code.
Departures: lambda's noise and draws are made for each row, whatever batch it is in. `right` is read as w from 1 / W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.logprobs import Columns, Scorer
from luthier.core.method import Loss, LuthierError
from luthier.core.noise import changed_embeddings
from luthier.core.subject import at_rest
from luthier.objectives._family import TokenObjective

BLOCK = 64
"""Tokens that one small matrix adds up; blocks are chained."""


@dataclass(frozen=True)
class IFT(TokenObjective):
    paper: ClassVar[str] = "arXiv:2405.11870"
    cards: ClassVar[tuple[int, ...]] = (64,)
    rows: ClassVar[tuple[str, ...]] = ("chat", "text", "segments", "tokenised")

    mix: float = 0.2
    mix_start: float | None = None
    ramp: float = 0.15
    mix_noise: float = 0.0
    rank: int = 1
    temperature: float = 0.0
    decay: float = 0.95
    source: Literal["loss", "logps", "mask"] = "loss"
    side: Literal["left", "right"] = "left"
    norm: Literal["L1", "L2", "softmax", "log"] = "L1"
    detach_weights: bool = False

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        """Lambda of each sequence and, for draws, a number in [0, 1) for each scored token."""
        assert batch.owner is not None
        mix = self.mix
        if self.mix_start is not None:
            mix = self.mix_start + (self.mix - self.mix_start) * min(1.0, step / max(1.0, self.ramp * total))
        key = int(rng.integers(2**31))
        rows = [np.random.default_rng([key, row]) for row in batch.rows.tolist()]
        noise = [r.standard_normal() for r in rows]
        counts = torch.bincount(batch.owner, minlength=batch.answers).tolist()
        draws = np.concatenate([r.random(n) for r, n in zip(rows, counts, strict=True)])
        own: dict[str, Any] = {
            "mix": torch.tensor([mix * (1 + self.mix_noise * x) for x in noise]).clamp(0, 1),
            "draws": torch.from_numpy(draws),
        }
        return replace(batch, extras=batch.extras | own)

    def weight(self, batch: Batch) -> float:
        assert batch.owner is not None
        return float(len(batch.owner.unique()))

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.owner is not None and batch.source is not None
        if batch.weights is not None:
            raise LuthierError("ift weighs tokens itself: rows must not bring weights of their own")
        figures = {}
        mix = batch.extras["mix"].to(batch.ids.device).index_select(0, batch.owner)  # (N,)
        guess = None
        if bool(mix.any()):
            with at_rest(scorer.model):
                gold, guess = scorer.read(batch, self._predict(batch.extras["draws"]))
            figures["loss/gold"] = (-gold.sum(), float(len(gold)))
        table = scorer.plain.get_input_embeddings()
        with changed_embeddings(scorer.plain, batch.ids, lambda own: mixed(own, table, batch, mix, guess)):
            logp = scorer.token_logp(batch)  # (N,)
        figures["loss/mixed"] = (-logp.detach().sum(), float(len(logp)))
        losses, real = by_sequence(-logp, batch)
        weights = self.weights(losses, real)
        n = real.sum(1).clamp(min=1)
        return Loss(((weights * losses).sum(1) / n).sum(), self.weight(batch), figures)

    def _predict(self, draws: Tensor) -> Callable[[Tensor, Tensor], Columns]:
        """log pi of the true token, and x^ of its place."""
        done = 0

        def predict(logits: Tensor, target: Tensor) -> Columns:
            nonlocal done
            gold = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
            if self.temperature > 0:
                below = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
                at = draws[done : done + len(target)].to(below)[:, None] * below[:, -1:]
                guess = torch.searchsorted(below, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
            else:
                guess = logits.topk(self.rank, -1).indices[:, -1]
            done += len(target)
            return gold, guess.to(gold)

        return predict

    def weights(self, losses: Tensor, real: Tensor) -> Tensor:
        """w (A, n) from l (A, n); 0 where there is no token."""
        n = real.sum(1, keepdim=True).clamp(min=1)
        added = real if self.source == "mask" else losses / n if self.source == "loss" else losses
        if self.side == "left":
            W = discounted(added, self.decay)
        else:
            W = 1 / discounted(added.flip(1), self.decay).flip(1).clamp(min=1e-6)
        if self.norm == "softmax":
            w = W.masked_fill(real == 0, -torch.inf).softmax(1)
            w = w.masked_fill(real == 0, 0)  # a sequence without a token
        else:
            f = {"L1": W, "L2": W**2, "log": torch.log1p(W)}[self.norm] * real
            w = f / f.sum(1, keepdim=True).clamp(min=torch.finfo(f.dtype).tiny)
        w = n * w
        return w.detach() if self.detach_weights else w


def mixed(
    embedded: Tensor, table: Callable[[Tensor], Tensor], batch: Batch, mix: Tensor, guess: Tensor | None
) -> Tensor:
    """Input embeddings (B, T, D) in which every predicted token is mixed with what the model said in its place."""
    assert batch.source is not None
    embedded = embedded.detach()
    if guess is None:
        return embedded
    at = batch.source + 1  # where the predicted token stands: x^ of a place was said one place before
    ids = batch.ids.flatten().index_copy(0, at, guess.long()).view_as(batch.ids)
    share = torch.zeros(ids.numel(), dtype=embedded.dtype, device=ids.device)
    share = share.index_copy(0, at, mix.to(share)).view(*ids.shape, 1)
    return (1 - share) * embedded + share * table(ids).detach()


def by_sequence(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Values (N,) as a grid (A, n), a sequence a row, and 1 where there is a token."""
    assert batch.owner is not None
    counts = torch.bincount(batch.owner, minlength=batch.answers)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(values), device=values.device) - first.index_select(0, batch.owner)
    grid = values.new_zeros(batch.answers, max(1, int(counts.max())))
    return grid.index_put((batch.owner, place), values), grid.index_put((batch.owner, place), torch.ones_like(values))


def discounted(x: Tensor, decay: float) -> Tensor:
    """sum over k >= t of decay^(k - t) x_k, along the columns of x (A, n)."""
    n = x.shape[1]
    size = min(BLOCK, n)
    steps = torch.arange(size, device=x.device)
    matrix = (decay ** (steps[:, None] - steps[None]).clamp(min=0).to(x.dtype)).tril()  # row k, column t
    fading = decay ** torch.arange(size, 0, -1, device=x.device).to(
        x.dtype
    )  # what a block keeps of the next one's first
    out: list[Tensor] = []
    for start in reversed(range(0, n, size)):
        part = x[:, start : start + size]
        m = part.shape[1]
        total = part @ matrix[:m, :m]
        if out:
            total = total + out[-1][:, :1] * fading
        out.append(total)
    return torch.cat(out[::-1], 1)
