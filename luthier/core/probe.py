"""What a tuner or an edit may ask of data when it chooses: batches as losses, the optimiser's own step, what things cost.

Nothing that is asked of a probe leaves a trace: weights, gradients, flags, optimiser state and random state are as before.

    delta(names)        the step dW that the run's optimiser would take now, at its rate and with its moments
    importance(names)   first-order fall of the loss along it:   I_k = - sum_b < grad_b(W + dW)_k, dW_k > / n batches
    cost(units)         operations of a step for every subset of units (core/flops.py), over the probe's batches
    rows(n)             losses of single rows, for what is a sum over rows (Fisher information)
    input_norms(names)  ||X_j|| of what modules are given: root of the sum of squares over all tokens, feature by feature

The step is taken on copies in float32, so that it does not vanish in a model of half precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.batch import Batch, Collate, Example, GroupExample, SearchExample, SourceTargetExample
from luthier.core.flops import GraphCost, counter, graph_cost
from luthier.core.logprobs import Scorer
from luthier.core.method import Objective
from luthier.core.trainable import Selection


def _no_run(given: Any) -> Any:
    raise NotImplementedError("this probe belongs to no run: it has batches only")


@dataclass
class Probe:
    """Batches of the run as losses.

    losses     mean loss of each batch, with gradient
    tokens     padded tokens of each batch
    optimizer  parameters -> the run's kind of optimiser over them, at the rate of the coming step
    padded     whether batches may hold padding
    alone      n -> -log p (the objective's sum) of each of n rows, drawn from all of the run's; all rows where n is more
    state      the run's optimiser state by parameter
    max_norm   gradients are clipped to this norm first (infinite: not at all)
    flops      operations that questions have cost so far (one entry, shared with probes of fewer batches)
    moves      what has moved so far; None before the first choice
    """

    model: nn.Module
    losses: Sequence[Callable[[], Tensor]]
    tokens: Sequence[int]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = _no_run
    alone: Callable[[int], list[Callable[[], Tensor]]] = _no_run
    padded: bool = True
    state: Mapping[Any, Any] = field(default_factory=dict)
    max_norm: float = float("inf")
    flops: list[int] = field(default_factory=lambda: [0])
    moves: Selection | None = None

    def first(self, n: int) -> Probe:
        """A probe that shows the first `n` batches only."""
        return replace(self, losses=self.losses[:n], tokens=self.tokens[:n])

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss over the batches, dropout off."""
        with self._undisturbed([]), torch.no_grad(), counter() as spent:
            found = sum(float(loss_of()) for loss_of in self.losses) / len(self.losses)
        self.flops[0] += spent.get_total_flops()
        return found

    def input_norms(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Norm (float64) of every input feature of the modules `names` over all tokens; those that nothing passed are left out."""
        if self.padded:
            raise ValueError("batches may hold padding, which would count as tokens")
        squares: dict[str, Tensor] = {}

        def look(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                x = given[0].detach().flatten(0, -2).double()
                squares[name] = x.square().sum(0) + squares.get(name, 0)

            return hook

        self.first(1).loss()  # a scorer looks at the model on its first use, with a token that is not of the data
        handles = [self.model.get_submodule(n).register_forward_pre_hook(look(n)) for n in names]
        try:
            self.loss()
        finally:
            for handle in handles:
                handle.remove()
        return {name: total.sqrt() for name, total in squares.items()}

    def gradients(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Mean gradient over the batches, float32, dropout off."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        with self._undisturbed(names), counter() as spent:
            for loss_of in self.losses:
                (loss_of() / len(self.losses)).backward()
            grads = {n: named[n].grad for n in names}
            found = {n: g.detach().float() for n, g in grads.items() if g is not None}
        self.flops[0] += spent.get_total_flops()
        return {n: found[n] if n in found else torch.zeros_like(named[n], dtype=torch.float32) for n in names}

    def delta(self, names: Sequence[str]) -> dict[str, Tensor]:
        """dW of one optimiser step on the tensors `names` together."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        gradients = self.gradients(names)
        shadows = {n: nn.Parameter(named[n].detach().clone().float()) for n in names}
        for name, shadow in shadows.items():
            shadow.grad = gradients[name]
        torch.nn.utils.clip_grad_norm_(shadows.values(), self.max_norm)
        optimizer = self.optimizer(list(shadows.values()))
        for name, shadow in shadows.items():
            if named[name] in self.state:
                optimizer.state[shadow] = copy.deepcopy(self.state[named[name]])
        optimizer.step()
        return {n: shadow.detach() - named[n].detach().float() for n, shadow in shadows.items()}

    def importance(self, names: Sequence[str]) -> dict[str, float]:
        """I_k of each tensor; what is large promises a large fall of the loss."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        step = self.delta(names)
        before = {n: named[n].detach().clone() for n in names}
        try:
            with torch.no_grad():
                for name in names:
                    named[name].copy_(before[name].float() + step[name])
            after = self.gradients(names)
        finally:
            with torch.no_grad():
                for name in names:
                    named[name].copy_(before[name])
        return {n: -float((after[n].double() * step[n].double()).sum()) for n in names}

    @contextmanager
    def rows(self, n: int, names: Sequence[str] = ()) -> Iterator[list[Callable[[], Tensor]]]:
        """-log p of `n` rows one by one, dropout off. Of the model's parameters `names` alone have gradients meanwhile."""
        with self._undisturbed(names), counter() as spent:
            yield self.alone(n)
        self.flops[0] += spent.get_total_flops()

    def cost(self, units: Mapping[str, Sequence[str]]) -> GraphCost:
        """Costs of all subsets of `units`, summed over the probe's batches."""
        total: GraphCost | None = None
        with self._undisturbed([n for names in units.values() for n in names], training=True):
            for loss_of, tokens in zip(self.losses, self.tokens, strict=True):
                one = graph_cost(self.model, units, loss_of, tokens)
                if total is None:
                    total = one
                else:
                    total.add(one)
        assert total is not None
        self.flops[0] += total.forward + total.full
        return total

    @contextmanager
    def _undisturbed(self, names: Sequence[str], training: bool = False) -> Iterator[None]:
        """`names` alone have gradients; afterwards gradients, flags, modes and random state are what they were."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        moving = {id(parameters[n]) for n in names}
        kept = {p: (p.requires_grad, p.grad) for p in parameters.values()}
        modes = {m: m.training for m in self.model.modules()}
        try:
            self.model.train(training)
            for parameter in kept:
                parameter.grad = None
                parameter.requires_grad_(id(parameter) in moving)
            with torch.random.fork_rng(enabled=True), torch.enable_grad():
                yield
        finally:
            for parameter, (flag, gradient) in kept.items():
                parameter.requires_grad_(flag)
                parameter.grad = gradient
            for module, mode in modes.items():
                module.training = mode


def probe_of(
    model: nn.Module, objective: Objective, examples: Sequence[Example], collate: Collate, size: int = 16
) -> Probe:
    """A probe of a model and rows that belong to no run. Rows of a batch are of one length, so that nothing is padding.

    The mean over batches is the mean over all that the objective counts (tokens, pairs or rows).
    """
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(_lengths(example), []).append(example)
    device = next(model.parameters()).device
    parts = [
        rows[i : i + size] for _, rows in sorted(groups.items(), key=lambda g: g[0]) for i in range(0, len(rows), size)
    ]
    shown = (objective.view(collate(part), 0, 1, np.random.default_rng(0)) for part in parts)
    batches = [batch.to(device) for batch in shown]
    total, scorer = sum(objective.weight(b) for b in batches), Scorer(model)

    def share_of(batch: Batch) -> Callable[[], Tensor]:
        return lambda: objective.compute(scorer, batch).sum * (len(batches) / total)

    padded = any(not bool(b.mask.all()) for b in batches)
    return Probe(model, [share_of(b) for b in batches], [b.ids.numel() for b in batches], padded=padded)


def _lengths(example: Example) -> tuple[int, ...]:
    if isinstance(example, SourceTargetExample):
        return len(example.ids), len(example.target)
    if isinstance(example, GroupExample):
        return len(example.prompt), *(len(a) for a in example.answers)
    if isinstance(example, SearchExample):
        return len(example.query), *(len(d) for d in example.documents)
    return (len(example.ids),)
