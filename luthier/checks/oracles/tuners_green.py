"""Every subset tried, the chain formula of the paper in plain loops, and torch's counter on real steps."""

from __future__ import annotations

import random

import torch
from torch.utils.flop_counter import FlopCounterMode

from luthier.checks._compare import require
from luthier.checks._models import WORLDS, World
from luthier.checks.oracles._tuners import method
from luthier.core.budget import best_set
from luthier.core.flops import GraphCost, graph_cost
from luthier.core.logprobs import Scorer
from luthier.core.probe import Probe


def _chain(rng: random.Random, tensors: int) -> tuple[list[int], list[int], list[float]]:
    """dw, dy and importance, the tensor nearest to the loss first."""
    dw = [rng.choice([0, rng.randint(1, 60)]) for _ in range(tensors)]
    dy = [rng.choice([0, rng.randint(1, 40)]) for _ in range(tensors)]
    return dw, dy, [rng.uniform(-0.3, 1.0) for _ in range(tensors)]


def _price(picked: int, dw: list[int], dy: list[int]) -> int:
    """The paper's chain: own gradients, and everything strictly between the deepest choice and the loss."""
    total, deepest = 0, picked.bit_length() - 1
    for k in range(len(dw)):
        if picked >> k & 1:
            total += dw[k]
        if k < deepest:
            total += dy[k]
    return total


def oracle_chain_by_trying_all() -> None:
    """160 random chains of nine tensors: no subset within the budget is worth more."""
    rng = random.Random(0)
    for _ in range(160):
        dw, dy, value = _chain(rng, 9)
        cost = GraphCost([str(k) for k in range(9)])
        for k in range(9):
            cost.shared[1 << k] = cost.shared.get(1 << k, 0) + dw[k]
            deeper = sum(1 << j for j in range(k + 1, 9))
            cost.shared[deeper] = cost.shared.get(deeper, 0) + dy[k]
        budget = int(rng.random() * (sum(dw) + sum(dy)))
        found = best_set(cost, value, budget)
        best = max(sum(value[k] for k in range(9) if m >> k & 1) for m in range(512) if _price(m, dw, dy) <= budget)
        require(_price(found.bits, dw, dy) == found.flops <= budget, "a set over its budget, or wrongly priced")
        require(abs(found.value - best) < 1e-9, f"found {found.value}, the best set is worth {best}")


def oracle_branches_by_trying_all() -> None:
    """60 random graphs in which costs are shared by any sets of tensors, with tensors that must be in."""
    rng = random.Random(1)
    for _ in range(60):
        n = 8
        shared = {rng.randrange(1, 1 << n): rng.randint(1, 50) for _ in range(rng.randint(4, 14))}
        cost = GraphCost([str(k) for k in range(n)], 0, shared)
        value = [rng.uniform(-0.2, 1.0) for _ in range(n)]
        always = 1 << rng.randrange(n) if rng.random() < 0.5 else 0
        budget = max(cost.backward(always), int(rng.random() * cost.full))
        found = best_set(cost, value, budget, always)
        best = max(
            sum(value[k] for k in range(n) if m >> k & 1 and not always >> k & 1)
            for m in range(1 << n)
            if m & always == always and sum(f for r, f in shared.items() if r & m) <= budget
        )
        require(found.bits & always == always and found.flops <= budget, "over budget, or without what must be in")
        require(abs(found.value - best) < 1e-9, f"found {found.value}, the best set is worth {best}")


def _probe(world: World) -> Probe:
    model = world.base(attn_implementation="eager").train()
    scorer, batch = Scorer(model).warm(), world.batch()

    def loss_of() -> torch.Tensor:
        loss = world.objective.compute(scorer, batch)
        return loss.sum / loss.weight

    adamw = lambda ps: torch.optim.AdamW(ps, lr=0.003, weight_decay=0.1)  # noqa: E731
    return Probe(model, [loss_of], [batch.ids.numel()], adamw, lambda n: [])


def oracle_counter() -> None:
    """The operations announced for a choice are those that torch's counter sees when it is trained; all within budget."""
    tuner = method(__name__)
    for world in WORLDS:
        probe = _probe(world)
        selection = tuner.choose(probe.model, probe)
        seen = {}
        for what in ("full", "chosen"):
            for name, parameter in probe.model.named_parameters():
                parameter.requires_grad_(what == "full" or name in selection.whole)
            with FlopCounterMode(display=False) as count:
                probe.losses[0]().backward()
            seen[what] = count.get_total_flops()
        told = selection.note["forward_flops"] + selection.note["backward_flops"]
        require(seen["chosen"] == told, f"{world.label}: {told} operations announced, {seen['chosen']} counted")
        require(seen["full"] == selection.note["full_flops"], f"{world.label}: full step counted differently")
        require(seen["chosen"] <= tuner.budget * seen["full"], f"{world.label}: over budget")


def oracle_importance() -> None:
    """Importance is the first-order change of the loss along a step of torch's own AdamW, taken on a copy."""
    world = WORLDS[0]
    probe = _probe(world)
    names = [n for n, _ in probe.model.named_parameters()]
    found = probe.importance(names)
    other = _probe(world)
    parameters = dict(other.model.named_parameters())
    start = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=0.003, weight_decay=0.1)
    other.losses[0]().backward()
    optimizer.step()
    optimizer.zero_grad()
    other.losses[0]().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        wanted = -float((parameter.grad.double() * (parameter - start[name]).double()).sum())
        require(abs(found[name] - wanted) <= 1e-5 + 1e-3 * abs(wanted), f"{name}: {found[name]}, wanted {wanted}")


def oracle_units_of_graph() -> None:
    """Units of several tensors cost what they cost together."""
    world = WORLDS[0]
    probe = _probe(world)
    names = [n for n, _ in probe.model.named_parameters()]
    pairs = {f"{i}": names[i : i + 2] for i in range(0, len(names), 2)}
    single = graph_cost(probe.model, {n: [n] for n in names}, probe.losses[0])
    double = graph_cost(probe.model, pairs, probe.losses[0])
    for i, two in pairs.items():
        require(double.backward(double.bits([i])) == single.backward(single.bits(two)), f"unit of {two}")
