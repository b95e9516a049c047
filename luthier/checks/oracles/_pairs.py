"""Pairs asked one by one, and what trl's trainers say about the same pairs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.checks._compare import CheckFailed
from luthier.checks._models import PAD, groups
from luthier.checks.data import vocabulary
from luthier.checks.objectives import World
from luthier.core.batch import IGNORED, GroupExample, collate_groups
from luthier.core.logprobs import Scorer


class Pair(NamedTuple):
    """Summed log-probabilities of a pair under policy and reference, and tokens of its answers."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    n_chosen: int
    n_rejected: int


def pairs(examples: Sequence[Any], policy: Any, reference: Any) -> Iterator[Pair]:
    for e in examples:
        chosen, rejected = e.answers
        yield Pair(
            policy.answer_logp(e.prompt, chosen), policy.answer_logp(e.prompt, rejected),
            reference.answer_logp(e.prompt, chosen).detach(), reference.answer_logp(e.prompt, rejected).detach(),
            len(chosen), len(rejected),
        )  # fmt: skip


def summed(
    loss: Callable[[Pair], Tensor], examples: Sequence[Any], policy: Any, reference: Any
) -> tuple[Tensor, float]:
    """The sum of a loss over the pairs, and their number."""
    return torch.stack([loss(pair) for pair in pairs(examples, policy, reference)]).sum(), float(len(examples))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x), written out."""
    return torch.log1p(torch.exp(-x.abs())) + torch.relu(x)


def uniform(examples: Sequence[Any], outputs: int) -> list[Pair]:
    """Pairs of a model that knows nothing and is its own reference."""
    log_v = torch.log(torch.tensor(float(outputs), dtype=torch.float64))
    out = []
    for e in examples:
        w, lost = (-len(a) * log_v for a in e.answers)
        out.append(Pair(w, lost, w, lost, *(len(a) for a in e.answers)))
    return out


# ------------------------------------------------------------------------------------------------------- trl


def ours(objective: Any, examples: Sequence[GroupExample], world: World) -> Tensor:
    """Mean loss of the method."""
    batch = collate_groups(list(examples), PAD)
    if objective.reference:
        batch.reference = torch.cat(World(world.label, world.architecture, tuple(examples)).references)
    loss = objective.compute(Scorer(world.model()), batch)
    return (loss.sum / loss.weight).detach()


PAIR_ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}


@contextmanager
def trl_trainer(
    trainer: Any, config: Any, models: Sequence[Any], row: dict[str, Any], **settings: Any
) -> Iterator[Any]:
    """A trainer of trl on a model and, where it takes one, a reference. It never trains; `row` is of its type."""
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as folder:
        told = config(
            output_dir=folder, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
            gradient_checkpointing=False, per_device_train_batch_size=8, **settings,
        )  # fmt: skip
        yield trainer(*models, args=told, processing_class=vocabulary(), train_dataset=Dataset.from_list([row] * 2))


def trl_dpo(examples: Sequence[GroupExample], world: World, **settings: Any) -> Tensor:
    """The loss of trl's DPOTrainer, on a batch that its own collator makes; the reference is another model."""
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt_ids": e.prompt, "chosen_ids": e.answers[0], "rejected_ids": e.answers[1]} for e in examples]
    models = (world.model(), world.model(reference=True))
    with trl_trainer(DPOTrainer, DPOConfig, models, PAIR_ROW, **settings) as trainer:
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    if not torch.is_tensor(loss):
        raise CheckFailed("trl's trainer returned no loss")
    return loss.detach()


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*r, *[value] * (width - len(r))] for r in rows])


def trl_reference_free(trainer_of: Callable[[], tuple[Any, Any]], examples: Sequence[GroupExample], world: World,
                       **settings: Any) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """Loss and metrics of one of trl's trainers without a reference (CPO, ORPO)."""
    batch: dict[str, Tensor] = {}
    for k, side in enumerate(("chosen", "rejected")):
        ids = [e.prompt + e.answers[k] for e in examples]
        labels = [[IGNORED] * len(e.prompt) + e.answers[k] for e in examples]
        batch |= {
            f"{side}_input_ids": padded(ids, PAD), f"{side}_labels": padded(labels, IGNORED),
            f"{side}_attention_mask": padded([[1] * len(r) for r in ids], 0),
        }  # fmt: skip
    with trl_trainer(*trainer_of(), (world.model(),), PAIR_ROW, max_length=64, **settings) as trainer, torch.no_grad():
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch, "train")
    return loss, metrics


def trl_cpo(examples: Sequence[GroupExample], world: World, **settings: Any) -> Tensor:
    def trainer() -> tuple[Any, Any]:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer, CPOConfig

    return trl_reference_free(trainer, examples, world, **settings)[0]


def even(n: int = 6, prompt: int | None = None) -> list[GroupExample]:
    """Pairs whose chosen answers are equally long: a mean over all their tokens is then the mean of their means."""
    return [GroupExample(e.row, e.prompt[:prompt], [e.answers[0][:2], e.answers[1]], e.scores) for e in groups(n)]


def pair_world(examples: Sequence[GroupExample] | None = None, architecture: str = "llama") -> World:
    return World("pairs", architecture, tuple(examples if examples is not None else groups(6)))
