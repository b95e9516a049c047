"""Skill graft: the fewest weights of a tuned model that carry what it learned, put on its base. Nothing is trained.

    theta(gamma) = gamma theta_ft + (1 - gamma) theta_0             gamma in {0, 1} for each of N weights of the body
    gamma_base   = 1 for the floor(share N) largest |theta_ft - theta_0|, over all tensors together
    gamma(S)     = gamma_base + (1 - 2 gamma_base) sigmoid(S - b)                               S real, the scores
    dL/dS        = (1 - 2 gamma_base) * g * (theta_ft - theta_0) * sigmoid'(S - b)              g = dL/dtheta at theta(gamma(S))

    share    size of the base patch;   most  largest share that the graft may have, None: `share`
    steps    of S on the data's loss; 0: the base patch is the graft, and no data are asked for
    rate     of these steps;   bias  b;   optim  "sgd", plain as in the paper, or "adam"
    outside  what is no part of a graft (embeddings, output head, final norm): "base" or "tuned"; None: refused if it moved
    seed     of S, uniform in [0, 1)
After every step gamma is rounded, cut to the `most` N entries whose scores are surest, and judged by the loss; the best of
these, the base patch among them, is the graft. A task head that is new is always the tuned one and not counted.
Start:      share 1 is the tuned body and share 0 the base, to the last bit; a model that did not move gives nothing.
Cost:       steps * (two forward passes and one backward over the data); five numbers a weight of the body in memory.
Paper:      Panigrahi et al., 2023, "Task-Specific Skill Localization in Fine-tuned Language Models", arXiv:2302.06600,
            section 3.
Departures: the number of weights is held by `most`, where the paper relies on starting small. Judged on the rows given,
            where the paper also looks at validation rows. A graft is saved as a delta (`save_delta`), put on its own base
            exactly; grafting on a model that was grafted before gives a union of grafts (the paper's continual learning).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.core.anatomy import Anatomy, anatomy, in_task_head
from luthier.core.method import Edit, LuthierError
from luthier.core.probe import Probe
from luthier.core.ranking import largest, share_of
from luthier.edits._family import State, between, wide

Masks = dict[str, Tensor]


@dataclass
class Choice:
    """A chosen graft.

    masks    gamma of the body's tensors, True: tuned;   tuned  whether what is no part of a graft is the tuned one's
    cap      most entries that it may have
    told     loss and entries that differ from the base patch, after every step; the first is the base patch
    """

    masks: Masks
    tuned: bool
    cap: int
    body: Anatomy
    told: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Graft(Edit):
    paper: ClassVar[str] = "arXiv:2302.06600"
    cards: ClassVar[tuple[int, ...]] = (8,)
    inputs: ClassVar[tuple[int, int | None]] = (2, 2)
    capabilities: ClassVar[frozenset[str]] = frozenset({"agree", "copies"})

    share: float = 0.1
    most: float | None = None
    steps: int = 0
    rate: float = 1e7
    bias: float = 10.0
    optim: Literal["sgd", "adam"] = "sgd"
    outside: Literal["base", "tuned"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        between(self.share, 0, 1, "share")
        if self.most is not None:
            between(self.most, self.share, 1, "most")

    @classmethod
    def example(cls) -> Graft:
        return cls(steps=2, rate=0.3, bias=3.0, optim="adam", outside="base")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"architecture", "data"} if self.steps else {"architecture"})

    def plan(self, states: Sequence[State], model: nn.Module | None = None, probe: Probe | None = None) -> Choice:
        if model is None or (self.steps and probe is None):
            raise LuthierError("graft needs the architecture" + " and data" * bool(self.steps))
        tuned, base = states
        body = anatomy(model)
        names = [n for n in tuned if tuned[n].is_floating_point() and in_body(n, body)]
        self._outside(tuned, base, names)
        total = sum(base[n].numel() for n in names)
        cap = share_of(self.share if self.most is None else self.most)(total)

        def moved() -> Iterator[tuple[str, Tensor]]:
            for name in names:
                yield name, (wide(tuned[name]) - wide(base[name])).abs()

        patch = largest(moved, share_of(self.share))
        masks = {name: patch.mask(name, size) & (size > 0) for name, size in moved()}
        choice = Choice(masks, self.outside == "tuned", cap, body)
        if self.steps:
            assert probe is not None
            choice.masks = self._optimise(choice, tuned, base, probe)
        return choice

    def _outside(self, tuned: State, base: State, names: list[str]) -> None:
        if self.outside is None:
            for name in sorted(tuned.keys() - set(names)):
                if not in_task_head(name) and not torch.equal(tuned[name], base[name]):
                    raise LuthierError(
                        f"'{name}' moved in tuning and is no part of a graft: set edit.outside to 'base' (it goes back) or "
                        "'tuned' (it is carried over whole), or tune with it held still"
                    )

    def _optimise(self, choice: Choice, tuned: State, base: State, probe: Probe) -> Masks:
        """Scores by gradient descent; the hard graft of the lowest loss."""
        patch, names = choice.masks, list(choice.masks)
        named = dict(probe.model.named_parameters(remove_duplicate=False))
        old = {n: wide(base[n]) for n in names}
        delta = {n: wide(tuned[n]) - old[n] for n in names}
        sign = {n: 1 - 2 * patch[n].to(delta[n].dtype) for n in names}
        draw = torch.Generator().manual_seed(self.seed)
        scores = {n: torch.rand(delta[n].shape, generator=draw, dtype=delta[n].dtype).requires_grad_() for n in names}
        optimizer = (torch.optim.Adam if self.optim == "adam" else torch.optim.SGD)(list(scores.values()), lr=self.rate)
        before = {n: p.detach().clone() for n, p in named.items()}
        best, masks = float("inf"), patch
        try:
            for name in named.keys() - set(names) & tuned.keys():
                _put(named[name], self._carried(name, tuned, base))
            for step in range(self.steps + 1):
                hard = patch if step == 0 else self._rounded(scores, sign, delta, choice.cap)
                for n in names:
                    _put(named[n], torch.where(hard[n], tuned[n], base[n]))
                loss = probe.loss()
                flipped = sum(int((hard[n] != patch[n]).sum()) for n in names)
                choice.told.append(
                    {"loss": loss, "flipped": flipped, "entries": sum(int(m.sum()) for m in hard.values())}
                )
                if loss < best:
                    best, masks = loss, hard
                if step < self.steps:
                    slopes = slope(scores, patch, delta, self.bias)
                    for n in names:
                        soft = patch[n] + sign[n] * torch.sigmoid(scores[n].detach() - self.bias)
                        _put(named[n], old[n] + soft * delta[n])
                    gradients = probe.gradients(names)
                    for n in names:
                        scores[n].grad = slopes[n] * gradients[n].to(slopes[n])
                    optimizer.step()
        finally:
            for name, value in before.items():
                _put(named[name], value)
        return masks

    def _rounded(self, scores: Masks, sign: Masks, delta: Masks, cap: int) -> Masks:
        """gamma(S) to 0 and 1; of more than `cap` ones those with the largest logit of gamma stay."""
        logits = {n: ((s.detach() - self.bias) * sign[n] * (delta[n] != 0)).clamp(min=0) for n, s in scores.items()}
        if sum(int((x > 0).sum()) for x in logits.values()) <= cap:
            return {n: x > 0 for n, x in logits.items()}
        kept = largest(logits.items, cap)
        return {n: kept.mask(n, x) & (x > 0) for n, x in logits.items()}

    def _carried(self, name: str, tuned: State, base: State) -> Tensor:
        return tuned[name] if self.outside == "tuned" or in_task_head(name) else base[name]

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: Choice) -> Tensor:
        tuned, base = tensors
        if name in plan.masks:
            return torch.where(plan.masks[name], tuned, base)
        return tuned if plan.tuned or in_task_head(name) else base

    def found(self, plan: Choice) -> dict[str, Any]:
        entries, total = (sum(int(f(m)) for m in plan.masks.values()) for f in (torch.sum, torch.numel))
        out = {"entries": entries, "of": total, "share": entries / max(total, 1), "most": plan.cap, "steps": plan.told}
        if plan.told and not any(t["flipped"] for t in plan.told):
            out["warning"] = "no entry changed sides: raise edit.rate, or lower edit.bias"
        return out | {"where": location(plan.masks, plan.body)}


# ------------------------------------------------------------------------------------------------ looking at grafts


def slope(scores: Masks, patch: Masks, delta: Masks, bias: float) -> Masks:
    """d theta / d S, entry by entry: (1 - 2 gamma_base) (theta_ft - theta_0) sigmoid'(S - b)."""
    out = {}
    for name, s in scores.items():
        p = torch.sigmoid(s.detach() - bias)
        out[name] = (1 - 2 * patch[name].to(p.dtype)) * delta[name] * p * (1 - p)
    return out


def mask_of(grafted: State, base: State) -> Masks:
    """gamma of a graft that is on its base: where the two differ."""
    return {n: grafted[n] != base[n] for n in base if base[n].is_floating_point()}


def union(*masks: Mapping[str, Tensor]) -> Masks:
    """What any of several grafts holds."""
    return {n: torch.stack([m[n] for m in masks]).any(0) for n in masks[0]}


def overlap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|gamma_i and gamma_j| / |gamma_j|: the share of the other graft that lies in this one; not symmetric."""
    both = sum(int((one[n] & other[n]).sum()) for n in other)
    return both / max(1, sum(int(m.sum()) for m in other.values()))


def location(masks: Mapping[str, Tensor], body: Anatomy) -> dict[str, dict[str, float]]:
    """Share of a graft's entries by layer and by kind of tensor, and how full of them each kind is."""
    kinds: dict[str, list[str]] = {}
    for layer in body.layers:
        for matrix in layer.matrices:
            kinds.setdefault(matrix.module, []).append(matrix.role)
        kinds |= {norm: ["norm"] for norm in layer.norms}
    total = max(1, sum(int(m.sum()) for m in masks.values()))
    by_layer: dict[str, float] = {}
    by_kind: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for name, mask in masks.items():
        module, _, last = name.rpartition(".")
        kind = " ".join(dict.fromkeys(kinds.get(module, ["other"])))
        kind = "bias" if last == "bias" and kind != "norm" else kind
        at = next(f"{x.stack} {x.index}" for x in body.layers if name.startswith(f"{x.name}."))
        by_layer[at] = by_layer.get(at, 0) + int(mask.sum()) / total
        by_kind[kind] = by_kind.get(kind, 0) + int(mask.sum()) / total
        sizes[kind] = sizes.get(kind, 0) + mask.numel()
    filled = {k: v * total / sizes[k] for k, v in by_kind.items()}
    return {"layer": by_layer, "kind": by_kind, "filled": filled}


def in_body(name: str, body: Anatomy) -> bool:
    """Whether a tensor is a transformer block's: what a graft may hold."""
    return any(name.startswith(f"{layer.name}.") for layer in body.layers)


@torch.no_grad()
def _put(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value)
