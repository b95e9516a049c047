"""Logits to per-token log-probabilities, only at scored positions, in chunks: the full (B, T, V) logits never exist.

    logp[n] = z[n, target[n]] - log sum_v exp z[n, v],    z = states @ W.T + b            states (N, D), z (N, V)

The model runs unmodified. While it runs, its output embedding sees only the N scored states instead of B*T, and
when nothing follows the head (no scaling or capping of logits: measured once per model, not looked up) the head's
product, the log-softmax and their gradients are one operation over chunks of rows.

What needs the whole distribution at a position (a KL divergence to another model, the likeliest token) is a function of
the logits, `read` or `compare`, over the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.core.batch import Batch
from luthier.core.embedding import Pooling, pooled
from luthier.core.method import LuthierError
from luthier.core.noise import noisy
from luthier.core.rowwise import row_by_row, rowwise_of
from luthier.core.subject import at_rest

CHUNK_BYTES = 256 * 2**20
"""Logits held at once. Below it nothing is recomputed in backward; above it each chunk's logits are computed twice."""


class _LinearLogp(torch.autograd.Function):
    """logp of targets under a linear head, as few passes over (N, V) as the mathematics needs.

    With e = exp(z - max z), kept in place of z, and S = sum_v e: logp = z[target] - max z - log S, and for a gradient g

        d states = g W[target] - (g/S) (e @ W)         d W = one_hot(target).T @ (g states) - e.T @ ((g/S) states)

    so the softmax itself is never written. Gradients of a frozen head are not computed; d logp / d states of such a
    head needs no g, is found in the forward pass, and nothing of size V outlives it.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int) -> Tensor:
        dtype = _compute_dtype(states)
        n, moves = states.shape[0], any(ctx.needs_input_grad[1:3])
        logp = torch.empty(n, dtype=_full(dtype), device=states.device)
        slope = torch.empty_like(states) if ctx.needs_input_grad[0] and not moves else None
        kept: tuple[Tensor | None, Tensor | None] = (None, None)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, n, chunk):
                rows = slice(start, min(start + chunk, n))
                logp[rows], e, total = _exponentials(states[rows], weight, bias, target[rows], dtype)
                if slope is not None:
                    one = torch.ones_like(total)
                    slope[rows] = _d_states(e, total, one, weight, target[rows], dtype).to(states.dtype)
                elif n <= chunk:
                    kept = (e, total)
        ctx.save_for_backward(states, weight, bias, target, slope, *kept)
        ctx.chunk, ctx.dtype = chunk, dtype
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        states, weight, bias, target, slope, *kept = ctx.saved_tensors
        if slope is not None:
            return slope * grad[:, None].to(slope.dtype), None, None, None, None
        need_states, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_states = torch.empty_like(states) if need_states else None
        d_weight = d_bias = None
        for start in range(0, states.shape[0], ctx.chunk):
            rows = slice(start, min(start + ctx.chunk, states.shape[0]))
            e, total = kept
            if e is None:
                _, e, total = _exponentials(states[rows], weight, bias, target[rows], ctx.dtype)
            g = grad[rows, None].to(total.dtype)
            if d_states is not None:
                d_states[rows] = _d_states(e, total, g, weight, target[rows], ctx.dtype).to(states.dtype)
            if need_weight:
                part = _d_weight(e, total, g, states[rows], target[rows], ctx.dtype)
                d_weight = _add(d_weight, part.to(weight.dtype))
            if bias is not None and need_bias:
                part = (e.T @ (-g / total))[:, 0].index_add_(0, target[rows], g[:, 0])
                d_bias = _add(d_bias, part.to(bias.dtype))
        if need_weight and d_weight is None:  # no row at all
            d_weight = torch.zeros_like(weight)
        return d_states, d_weight, d_bias, None, None


def _compute_dtype(states: Tensor) -> torch.dtype:
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _full(dtype: torch.dtype) -> torch.dtype:
    """The precision that sums over the vocabulary are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _exponentials(
    states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """logp (n,), e (n, V) and its sum over the vocabulary (n, 1)."""
    z = F.linear(states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(_full(dtype))
    chosen, peak = z.gather(1, target[:, None]), z.amax(-1, keepdim=True)
    e = z.sub_(peak).exp_()
    total = e.sum(-1, keepdim=True)
    return (chosen - peak - total.log())[:, 0], e, total


def _d_states(e: Tensor, total: Tensor, g: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """sum_n g[n] d logp[n] / d states, (n, D)."""
    if dtype != e.dtype:
        return _d_logits(e, total, g, target).to(dtype) @ weight.to(dtype)
    weight = weight.to(dtype)
    return (e @ weight).mul_(-g / total).addcmul_(weight.index_select(0, target), g)


def _d_weight(e: Tensor, total: Tensor, g: Tensor, states: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """sum_n g[n] d logp[n] / d weight, (V, D)."""
    if dtype != e.dtype:
        return _d_logits(e, total, g, target).to(dtype).T @ states.to(dtype)
    states = states.to(dtype)
    return (e.T @ (states * (-g / total))).index_add_(0, target, states * g)


def _d_logits(e: Tensor, total: Tensor, g: Tensor, target: Tensor) -> Tensor:
    """g (one_hot - softmax), (n, V): written out where it must be rounded to a half precision only after the difference."""
    return (e * (-g / total)).scatter_add_(1, target[:, None], g)


def _add(so_far: Tensor | None, part: Tensor) -> Tensor:
    return part if so_far is None else so_far.add_(part)


def linear_logp(
    states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int | None = None
) -> Tensor:
    """Log-probabilities (N,) of `target` (N,) given states (N, D) and a head weight (V, D), bias (V,)."""
    chunk = chunk or max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    if torch.is_grad_enabled():
        return _LinearLogp.apply(states, weight, bias, target, chunk)
    dtype = _compute_dtype(states)
    with torch.autocast(states.device.type, enabled=False):
        parts = zip(states.split(chunk), target.split(chunk), strict=True)
        return torch.cat([_exponentials(s, weight, bias, t, dtype)[0] for s, t in parts])


def gather_logp(logits: Tensor, target: Tensor | None) -> Tensor:
    """Log-probabilities (N,) of `target` from logits (N, V)."""
    assert target is not None
    return torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1).gather(
        1, target[:, None]
    )[:, 0]


Columns = tuple[Tensor, ...]
"""Tensors (n,), one number for each scored position."""


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) (n,) of distributions given as log-probabilities (n, V)."""
    return (p.exp() * (p - q)).sum(-1)


def forward_kl(logits: Tensor, reference: Tensor, target: Tensor) -> Columns:
    """log pi(target), log rho(target) and KL(rho || pi) = sum_v rho(v) (log rho(v) - log pi(v)), from logits (n, V)."""
    log_pi, log_rho = logits.log_softmax(-1), reference.log_softmax(-1)
    at = target[:, None]
    return log_pi.gather(1, at)[:, 0], log_rho.gather(1, at)[:, 0], kl(log_rho, log_pi)


def logp_of_both(logits: Tensor, reference: Tensor, target: Tensor) -> Columns:
    """log pi(target) and log rho(target), from logits (n, V)."""
    return gather_logp(logits, target), gather_logp(reference, target)


@contextmanager
def instead(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While active, `module` runs `forward` in place of its own."""
    before = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before  # type: ignore[method-assign]


class Scorer:
    """Runs a model on batches and returns what objectives and evaluators ask for.

    model     the module to call (it may be wrapped by accelerate)
    plain     the same module without the accelerate wrapper
    beside    the model that `compare` compares with; None: this one with its adapter switched off
    """

    def __init__(
        self,
        model: nn.Module,
        plain: nn.Module | None = None,
        chunk: int | None = None,
        beside: nn.Module | None = None,
    ):
        self.model = model
        self.plain: Any = plain if plain is not None else model
        self.chunk = chunk
        self.beside = None if beside is None else Scorer(beside, chunk=chunk)
        self.rowwise = rowwise_of(self.plain)
        self._linear: bool | None = None

    @property
    def device(self) -> torch.device:
        return next(self.plain.parameters()).device

    @property
    def head(self) -> nn.Module:
        head = self.plain.get_output_embeddings()
        if head is None:
            raise LuthierError(
                f"{type(self.plain).__name__} has no language-model head: load it for a language-model task"
            )
        return head

    def warm(self) -> Scorer:
        """Measure now what is else measured on first use, so that no cost of it falls on the first batch."""
        head = self.plain.get_output_embeddings()
        if head is not None:
            self._ends_at_head(head)
        return self

    def run(self, batch: Batch, **asked: Any) -> Any:
        """The model's own output on a batch, with whatever else it is asked for."""
        inputs: dict[str, Any] = {**batch.inputs(self._mask_dtype()), **asked}
        if self._caches:
            inputs["use_cache"] = False
        with (
            row_by_row(self.rowwise, batch),
            nullcontext() if batch.noise is None else noisy(self.plain, batch, *batch.noise),
        ):
            return self.model(**inputs)

    def token_logp(self, batch: Batch) -> Tensor:
        """Log-probability (N,) of each scored token."""
        found = self._scored(batch, self._logp(batch))
        if self._ends_at_head(self.head):
            return found[:, 0] if found.dtype == torch.float64 else found[:, 0].float()
        return gather_logp(found, batch.target)

    def answer_logp(self, batch: Batch) -> Tensor:
        """Summed log-probability (A,) of each answer."""
        return batch.by_answer(self.token_logp(batch))

    def read(self, batch: Batch, function: Callable[..., Columns], *of_token: Tensor) -> Columns:
        """`function(logits (n, V), target (n,), ...)` over the scored positions, in chunks; each of its tensors as (N,).

        What else it is given are the same rows of `of_token`, tensors (N, ...).
        """
        return self._columns(batch, lambda logits, target, at: function(logits, target, *(t[at] for t in of_token)))

    def compare(self, batch: Batch, function: Callable[[Tensor, Tensor, Tensor], Columns]) -> Columns:
        """`function(logits, logits of the model beside, target)` likewise: no (N, V) of either model exists whole.

        The model beside is at rest and gets no gradient. A token that one of the two does not have counts for neither.
        """
        with self.untuned() as other:
            own, linear = other.head.forward, other._ends_at_head(other.head)
            kept = other._states(batch) if linear else other._logits(batch)
        adapted = other is self and type(self.head) is not nn.Linear

        def there(at: slice) -> Tensor:
            if not linear:
                return kept[at]
            with self.untuned() if adapted else nullcontext(), torch.no_grad():
                return _whole(own(kept[at]))

        def both(logits: Tensor, target: Tensor, at: slice) -> Columns:
            theirs = there(at)
            v = min(logits.shape[-1], theirs.shape[-1])
            return function(logits[:, :v], theirs[:, :v], target)

        return self._columns(batch, both)

    @contextmanager
    def untuned(self) -> Iterator[Scorer]:
        """The model beside, at rest: another model, or this one with its adapter off. It leaves no trace."""
        if self.beside is not None:
            with at_rest(self.beside.model):
                yield self.beside
            return
        if not hasattr(self.plain, "disable_adapter"):
            raise LuthierError("the untuned model is asked for, and no copy of it was kept")
        moving = [(p, p.requires_grad) for p in self.plain.parameters()]  # which switching on and off forgets
        try:
            with self.plain.disable_adapter(), at_rest(self.model):
                yield self
        finally:
            for parameter, flag in moving:
                parameter.requires_grad_(flag)

    def look(self, batch: Batch, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability (N,) of each scored token; of those at `at` (n,) what the head sees (n, D) and the logits (n, V)."""
        own, logp, seen = self.head.forward, self._logp(batch), []

        def looked_at(states: Tensor) -> Tensor:
            seen.append(states.index_select(0, at))
            return logp(states)

        found = self._scored(batch, looked_at)
        if self._ends_at_head(self.head):
            return found[:, 0], seen[0], _whole(own(seen[0]))
        return gather_logp(found, batch.target), seen[0], _whole(found.index_select(0, at))

    def class_logits(self, batch: Batch) -> Tensor:
        """Logits (B, C) of a task head. That of a decoder reads the last real token: by the mask, whatever the id of the
        padding, which may also be that of the end token."""
        head = next((m for n, m in self.plain.named_modules() if n.rsplit(".", 1)[-1] == "score"), None)
        if head is None:
            return self.run(batch).logits
        own, place = head.forward, torch.arange(batch.ids.shape[1], device=batch.ids.device)
        last = (batch.mask * place).amax(1)  # (B,)

        def at_last(states: Tensor) -> Tensor:  # (B, T, D), or (B, D) where the model has pooled them
            if states.ndim < 3:
                return own(states)
            at = last + states.shape[1] - len(place)  # behind a prompt that the model puts in front
            row = torch.arange(len(at), device=at.device)
            return own(states[row, at])[:, None].expand(-1, states.shape[1], -1)  # (B, T, C)

        with instead(head, at_last):
            return self.run(batch).logits

    def tag_logits(self, batch: Batch) -> Tensor:
        """Logits (N, C) of a task head at the scored tokens, behind a prompt that the model puts in front."""
        assert batch.source is not None
        logits = self.run(batch).logits[:, -batch.ids.shape[1] :]
        return logits.flatten(0, 1).index_select(0, batch.source)

    def logp_and_states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability (N,) of each scored token, and the state (N, D) that the head sees there."""
        logp, seen = self._logp(batch), []

        def noted(states: Tensor) -> Tensor:
            seen.append(states)
            return logp(states)

        found = self._scored(batch, noted)
        return (found[:, 0] if self._ends_at_head(self.head) else gather_logp(found, batch.target)), seen[0]

    def _scored(self, batch: Batch, head: Callable[[Tensor], Tensor]) -> Tensor:
        """What the model makes of `head` in place of its own, which is given the states (N, D) at the scored positions."""
        source = batch.source
        assert source is not None

        def seen(hidden: Tensor) -> Tensor:  # (B, T, D)
            return head(hidden.reshape(-1, hidden.shape[-1]).index_select(0, source))[None]

        with instead(self.head, seen):
            out = self.run(batch)
        found: Tensor = (out.logits if hasattr(out, "logits") else out[0])[0]
        return found

    def _logp(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """States (N, D) to log-probabilities (N, 1) of the targets, or to logits (N, V) where something follows the head."""
        head, target = self.head, batch.target
        assert target is not None
        own = head.forward
        if not self._ends_at_head(head):
            return own
        if type(head) is nn.Linear:
            return lambda states: linear_logp(states, head.weight, head.bias, target, self.chunk)[:, None]
        return lambda states: self._chunked(own, states, target)[:, None]

    def _columns(self, batch: Batch, function: Callable[[Tensor, Tensor, slice], Columns]) -> Columns:
        head, target = self.head, batch.target
        assert target is not None
        own, ends, N = head.forward, self._ends_at_head(head), len(target)
        size = self.chunk or max(1, CHUNK_BYTES // (4 * self.plain.config.vocab_size))

        def part(rows: Tensor, at: slice) -> Tensor:  # states (n, D), or logits (n, V) where something follows the head
            return torch.stack(function(_whole(own(rows) if ends else rows), target[at], at), -1)  # (n, K)

        def chunked(rows: Tensor) -> Tensor:
            if size >= N:
                return part(rows, slice(0, N))
            pieces = [slice(i, min(i + size, N)) for i in range(0, N, size)]
            return torch.cat([checkpoint(part, rows[at], at, use_reentrant=False) for at in pieces])

        found = self._scored(batch, chunked if ends else own)
        return (found if ends else chunked(found)).unbind(-1)

    def embeddings(self, batch: Batch, pooling: Pooling) -> Tensor:
        """One vector (B, D) for each row of the grid, of the final states; a language-model head is passed over."""
        head = self.plain.get_output_embeddings()
        if head is None:
            return pooled(self.run(batch).last_hidden_state, batch.mask, pooling)
        with instead(head, lambda states: states[..., :1]):
            return pooled(self.run(batch, output_hidden_states=True).hidden_states[-1], batch.mask, pooling)

    def _states(self, batch: Batch) -> Tensor:
        """States (N, D) that the head would see at the scored positions, where it is the model's end. No head runs."""
        kept = []

        def keep(states: Tensor) -> Tensor:
            kept.append(states)
            return states.new_zeros(1, 1)

        self._scored(batch, keep)
        return kept[0]

    def _logits(self, batch: Batch) -> Tensor:
        """Logits (N, V) at the scored positions."""
        return _whole(self._scored(batch, self.head.forward))

    def _mask_dtype(self) -> torch.dtype:
        """Additive masks must have the dtype that attention runs in."""
        kind = self.device.type
        return (
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else next(self.plain.parameters()).dtype
        )

    @property
    def _caches(self) -> bool:
        return not getattr(self.plain.config, "is_encoder_decoder", False) and bool(
            getattr(self.plain.config, "use_cache", False)
        )

    def _chunked(self, head: Callable[[Tensor], Tensor], states: Tensor, target: Tensor) -> Tensor:
        """The same through any head module (an adapted one, say), recomputed chunk by chunk in backward."""
        chunk = self.chunk or max(1, CHUNK_BYTES // (4 * self.plain.config.vocab_size))
        if states.shape[0] <= chunk:
            return gather_logp(head(states), target)
        parts = [
            checkpoint(
                lambda s, t: gather_logp(head(s), t), states[i : i + chunk], target[i : i + chunk], use_reentrant=False
            )
            for i in range(0, states.shape[0], chunk)
        ]
        return torch.cat(parts)

    def _ends_at_head(self, head: nn.Module) -> bool:
        """Whether the model's logits are the head's output unchanged. Measured on its first use."""
        if self._linear is None:
            self._linear = _logits_are_heads(self.plain, head)
        return self._linear


def _whole(logits: Tensor) -> Tensor:
    """Logits in the precision that sums over the vocabulary are taken in."""
    return logits.to(_full(logits.dtype))


@torch.no_grad()
def _logits_are_heads(model: nn.Module, head: nn.Module) -> bool:
    """Make the head return a known ramp and look whether the model hands it on untouched."""
    ramp = torch.linspace(-60.0, 60.0, 16)

    def probe(hidden: Tensor) -> Tensor:
        return ramp.to(hidden).expand(*hidden.shape[:-1], 16).clone()

    was_training = model.training
    device = next(model.parameters()).device
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    inputs = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    before = head.__dict__.get("forward")
    rng = torch.get_rng_state()
    model.eval()
    try:
        with instead(head, probe):
            logits = model(**inputs).logits
    finally:
        model.train(was_training)
        torch.set_rng_state(rng)
        assert head.__dict__.get("forward") is before
    return torch.equal(logits.flatten()[:16].float().cpu(), ramp.to(logits.dtype).float())
