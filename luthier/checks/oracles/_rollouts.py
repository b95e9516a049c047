"""Answered prompts taken one token at a time, in float64, and what trl's trainers say about the same answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.checks._compare import close
from luthier.checks._models import PAD, model_of
from luthier.checks.objectives import World, computed, worlds
from luthier.checks.oracles import _pairs


class Told(NamedTuple):
    """An answer: log-probabilities of its tokens now, when it was written and by the reference, and values then."""

    now: list[Tensor]
    old: list[float]
    ref: list[float]
    value: list[float]


def told(e: Any, policy: Any) -> Iterator[Told]:
    at = 0
    for answer in e.answers:
        logp = policy.logp([*e.prompt, *answer])
        now = [logp[len(e.prompt) - 1 + t, token] for t, token in enumerate(answer)]
        part = slice(at, at + len(answer))
        yield Told(now, *(e.extras[name].double()[part].tolist() for name in ("old", "ref", "value")))
        at += len(answer)


def at_start(e: Any, outputs: int) -> Iterator[Told]:
    """The same of a model that knows nothing."""

    class Uniform:
        @staticmethod
        def logp(ids: Sequence[int]) -> Tensor:
            return torch.full((len(ids), outputs), 1 / outputs, dtype=torch.float64).log()

    yield from told(e, Uniform)


def worse(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """The loss of a ratio, case by case."""
    if advantage >= 0:
        return -advantage * (ratio if float(ratio.detach()) <= 1 + high else torch.full_like(ratio, 1 + high))
    return -advantage * (ratio if float(ratio.detach()) >= 1 - low else torch.full_like(ratio, 1 - low))


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample."""
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


def against_trl(objective: Any, trainer: Any, config: Any, **settings: Any) -> None:
    """The mean loss of answers against the one that trl's trainer gives for the same columns."""
    world: World = worlds(objective)[0]
    answers = [(e.prompt, a) for e in world.examples for a in e.answers]
    prompts, said = [p for p, _ in answers], [a for _, a in answers]
    width = max(map(len, prompts))
    model = model_of(world.architecture)
    lengths = [len(a) for a in said]

    def grid(name: str) -> Tensor:
        rows = torch.cat([e.extras[name] for e in world.examples]).split(lengths)
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    batch = {
        "prompt_ids": torch.tensor([[PAD] * (width - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": _pairs.padded(said, PAD), "completion_mask": _pairs.padded([[1] * n for n in lengths], 0),
        "advantages": torch.cat([e.extras["advantage"] for e in world.examples]).float(),
        "old_per_token_logps": grid("old"), "ref_per_token_logps": grid("ref"), "old_logps": grid("old").sum(1),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }  # fmt: skip
    given = {"num_generations": 2, "max_completion_length": 8, **settings}

    def reward(**_: Any) -> list[float]:
        return []

    with _pairs.trl_trainer(trainer, config, (model, reward), {"prompt": "a"}, **given) as made:
        made.model.eval()
        made.current_gradient_accumulation_steps = 1
        made.beta = objective.beta  # given when it is made, it would look for a reference model
        wanted = made._compute_loss(made.model, batch).detach()
    found = computed(objective, model_of(world.architecture), world.batch(objective))
    close((found.sum / found.weight).detach(), wanted, f"loss and trl's with {settings}")
