"""The only training loop, on accelerate.

    for step: take its examples -> batches -> objective gives sums and weights -> divide by the weight of the whole
    step, over micro-batches and processes -> backward -> clip -> step

Which examples a step sees is a pure function of (seed, step), so a resumed run sees what an uninterrupted one would
have seen. The state after a step is model, optimiser and random generators; nothing else.
"""

from __future__ import annotations

import json
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core import meter
from luthier.core.anatomy import OWN_HEAD
from luthier.core.batch import (
    Batch,
    Example,
    GroupExample,
    LabelledExample,
    Plan,
    SearchExample,
    SourceTargetExample,
    TaggedExample,
    TextExample,
    collate_groups,
    collate_labelled,
    collate_packed,
    collate_searches,
    collate_source_target,
    collate_tagged,
    collate_text,
    pack,
)
from luthier.core.config import TrainSettings
from luthier.core.layer_cache import LayerCache, layer_cache
from luthier.core.logprobs import Scorer
from luthier.core.method import Loss, LuthierError, Objective, OnlineObjective, PartialTuner, Tuner
from luthier.core.probe import Probe
from luthier.core.references import References
from luthier.core.rollouts import Rollouts
from luthier.core.runs import RunFolder
from luthier.core.sources import cache_folder
from luthier.core.subject import at_rest
from luthier.core.teacher import Top
from luthier.core.trainable import BlockGuard, Selection
from luthier.core.trunk import share


class Diverged(LuthierError):
    """The loss or a gradient is not finite. The weights are those before the step that failed."""


class Interrupted(LuthierError):
    """Ctrl-C or SIGTERM: the state was saved and the run can be continued."""


class LoopCallback:
    """Events of the loop; every method may be left out."""

    def start(self, loop: Loop) -> None: ...
    def epoch(self, loop: Loop, epoch: int) -> None: ...
    def step(self, loop: Loop) -> None: ...
    def log(self, loop: Loop, row: dict[str, Any]) -> None: ...
    def evaluated(self, loop: Loop, row: dict[str, Any]) -> None: ...
    def saved(self, loop: Loop, path: Path) -> None: ...
    def end(self, loop: Loop) -> None: ...


# ------------------------------------------------------------------------------------------------- batches


@dataclass
class Collator:
    """Examples to batches, in the layout that the settings choose.

    pad           id that fills padding (masked, never trained)
    start         first decoder id of encoder-decoder models
    packed_length tokens of a packed row; 0: one example a row
    share_prompt  prompts of a group computed once
    """

    pad: int
    start: int = 0
    packed_length: int = 0
    share_prompt: bool = False

    def rows(self, examples: Sequence[Example]) -> list[list[int]]:
        """Which examples share a row of the grid; scored positions are in this order."""
        if self.packed_length and isinstance(examples[0], TextExample):
            return pack([len(e) for e in examples], self.packed_length)
        return [[i] for i in range(len(examples))]

    def __call__(self, examples: Sequence[Example]) -> Batch:
        first = examples[0]
        if isinstance(first, TextExample):
            if self.packed_length:
                rows = self.rows(examples)
                return collate_packed([[examples[i] for i in row] for row in rows], self.pad)  # type: ignore[misc]
            return collate_text(examples, self.pad)  # type: ignore[arg-type]
        if isinstance(first, GroupExample):
            return collate_groups(examples, self.pad, share_prompt=self.share_prompt)  # type: ignore[arg-type]
        if isinstance(first, LabelledExample):
            return collate_labelled(examples, self.pad)  # type: ignore[arg-type]
        if isinstance(first, TaggedExample):
            return collate_tagged(examples, self.pad)  # type: ignore[arg-type]
        if isinstance(first, SearchExample):
            return collate_searches(examples, self.pad)  # type: ignore[arg-type]
        assert isinstance(first, SourceTargetExample)
        return collate_source_target(examples, self.pad, self.start)  # type: ignore[arg-type]


def takes_block_masks(model: nn.Module) -> bool:
    """Whether every layer attends by an ordinary mask, so that a block mask says all (packing, shared prompts)."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    recurrent = any(hasattr(config, k) for k in ("mamba_d_state", "linear_num_key_heads", "state_size"))
    return kinds == {"full_attention"} and not window and not recurrent


def collator(model: nn.Module, pad: int, examples: Sequence[Example], settings: TrainSettings) -> Collator:
    """The layout: what the settings ask for, checked against what the model can do."""
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    out = Collator(pad, start)
    first = examples[0]
    able = takes_block_masks(model)
    if isinstance(first, TextExample) and settings.packing:
        lengths = [len(e) for e in examples]
        if settings.packing is True and not able:
            raise LuthierError("train.packing: this model's attention cannot be masked by blocks: use group_by_length")
        if able and (settings.packing is True or _padding_share(lengths, settings) > PACK_ABOVE_PADDING):
            out.packed_length = max(settings.packed_length or 0, max(lengths))
    if isinstance(first, GroupExample) and model.get_output_embeddings() is None:  # type: ignore[operator]
        pass  # a task head reads a row whole, so each answer needs its own
    elif isinstance(first, GroupExample) and settings.share_prompt and able:
        out.share_prompt = settings.share_prompt is True or _sharing_pays(examples)  # type: ignore[arg-type]
    elif isinstance(first, GroupExample) and settings.share_prompt is True:
        raise LuthierError("train.share_prompt: this model's attention cannot be masked by blocks: set it to false")
    return out


PACK_ABOVE_PADDING = 0.3
"""`packing: auto` packs only where the plan's batches would pad more than this share.

Measured on a CPU (benchmarks/packing.py): with 2 to 4 % padding, which is what length buckets leave, packed rows cost
1.16 to 1.32 times as much as padded ones; with 38 to 40 %, 0.74 to 0.94 times; with 57 % and more, 0.5 to 0.65 times.
"""


def _padding_share(lengths: Sequence[int], settings: TrainSettings) -> float:
    size = settings.per_device_train_batch_size
    plan = Plan(lengths, size, group_by_length=settings.group_by_length)
    real = padded = 0
    for rows in plan.epoch(0):
        real += sum(lengths[i] for i in rows)
        padded += len(rows) * max(lengths[i] for i in rows)
    return 1 - real / max(padded, 1)


def _sharing_pays(examples: Sequence[GroupExample]) -> bool:
    """A tree computes the prompt once but attends densely: it pays where prompts are a good part of the tokens.

    Measured on a CPU (benchmarks/packing.py), trees cost 1.01, 0.99, 0.82 and 0.69 times as much as separate rows where
    they hold 0.93, 0.85, 0.75 and 0.62 times the tokens.
    """
    shared = sum(len(e) for e in examples)
    apart = sum(len(e.answers) * len(e.prompt) + sum(len(a) for a in e.answers) for e in examples)
    return shared < 0.85 * apart


HELD_OUT = -1
"""The step that an objective's `view` is told for held-out rows."""
PROBE_BATCHES = 4
"""Micro-batches that a tuner which chooses on data is shown."""
STATE, SELECTION, ROLLOUTS = "trainer_state.json", "selection.pt", "rollouts.pt"
"""Of a checkpoint: where the run was, what a tuner had chosen on data, and the answers of the round."""

# ---------------------------------------------------------------------------------------------- optimisers


class UncorrectedAdamW(torch.optim.AdamW):
    """AdamW without bias correction, as in BERT's first code: early steps are up to sqrt(10) times as large.

    A step count at which 1 - beta^t is exactly 1 switches both corrections off and leaves the rest to torch.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for parameter in (p for g in self.param_groups for p in g["params"] if p.grad is not None):
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.tensor(1e9, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        return super().step(closure)


def make_optimizer(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    """An optimiser over parameter groups that carry their own `lr`."""
    if settings.optim == "sgd":
        return torch.optim.SGD(groups, lr=1.0, weight_decay=settings.weight_decay)
    if settings.optim == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=1.0, relative_step=False, scale_parameter=False, weight_decay=settings.weight_decay)
    floats = all(p.is_floating_point() for g in groups for p in g["params"])
    return (torch.optim.AdamW if settings.adam_correct_bias else UncorrectedAdamW)(
        groups,
        lr=1.0,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=floats,
    )


def rate(step: int, total: int, settings: TrainSettings) -> float:
    """Factor of the learning rate at optimiser step `step` (from 0)."""
    warm = settings.warmup_steps or math.ceil(settings.warmup_ratio * total)
    kind = settings.lr_scheduler_type
    if kind == "constant":
        return 1.0
    if step < warm:
        return (step + 1) / max(1, warm)
    if kind == "constant_with_warmup":
        return 1.0
    done = (step - warm) / max(1, total - warm)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1.0 - done


# ----------------------------------------------------------------------------------------------------- loop


UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Ways to run in which every process holds the whole model and its whole optimiser."""


@dataclass
class Fitted:
    """What a finished loop tells."""

    steps: int
    seconds: float
    tokens: int
    loss: float
    cost: dict[str, Any]
    best: str | None = None
    stopped: str | None = None
    log: list[dict[str, Any]] = field(default_factory=list)


class Loop:
    """Train `model` (already wrapped by `tuner`) on `examples` under `objective`.

    fresh       makes the untuned, wrapped model again: needed to gather sharded parameters into it
    references  what the objective needs of the untuned model; a list: log-probabilities of each example's answers
    rollouts    what writes the answers, for an objective of the tuned model's own; examples are then prompts
    """

    def __init__(
        self,
        model: nn.Module,
        tuner: Tuner,
        objective: Objective,
        examples: Sequence[Example],
        settings: TrainSettings,
        pad: int,
        seed: int = 0,
        run: RunFolder | None = None,
        held_out: Sequence[Example] | None = None,
        references: References | Sequence[Tensor] | None = None,
        callbacks: Sequence[LoopCallback] = (),
        accelerator: Accelerator | None = None,
        stage: int = 0,
        fresh: Callable[[], nn.Module] | None = None,
        rollouts: Rollouts | None = None,
    ):
        if not examples:
            raise LuthierError("there is nothing to train on: every row was rejected or the source is empty")
        self.rollouts = rollouts
        if rollouts is not None:
            examples = self._open(rollouts, objective, model, tuner, settings, examples, held_out)
        self.model, self.tuner, self.objective = model, tuner, objective.for_examples(examples)
        attach(self.objective, model)
        self.examples, self.settings, self.seed, self.run, self.stage = examples, settings, seed, run, stage
        self.fresh = fresh
        self.held_out, self.callbacks = held_out, list(callbacks)
        self.references = references if isinstance(references, References) else References(references)
        self.companions = self.objective.companions(examples)
        self.accelerator = accelerator or make_accelerator(settings)
        self.collate = collator(model, pad, examples, settings)
        world, accumulation = self.accelerator.num_processes, settings.gradient_accumulation_steps
        self.plan = Plan(
            [len(e) for e in examples],
            settings.per_device_train_batch_size * accumulation * world,
            seed if settings.data_seed is None else settings.data_seed,
            settings.group_by_length,
            group=self._whole_groups(),
            round=1 if rollouts is None else rollouts.settings.steps,
            passes=1 if rollouts is None else rollouts.settings.passes,
        )
        epochs = settings.num_train_epochs
        self.total = settings.max_steps if settings.max_steps > 0 else math.ceil(epochs * self.plan.steps_per_epoch)
        self.step_index = 0
        self.learning_rate = settings.learning_rate if settings.learning_rate is not None else tuner.learning_rate
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, str] | None = None
        self.patience_left = settings.early_stopping_patience
        self.stop_reason: str | None = None
        self.guard: BlockGuard | None = None
        self.kept: LayerCache | None = None
        self.selection = Selection()
        self.tokens = self.padded = self.charged = 0
        self.seconds = self.train_flops = self.choice_flops = 0.0
        self.step_seconds: list[float] = []
        self.optimizer: torch.optim.Optimizer
        self.fitted: Fitted  # when callbacks are told `end`

    # set-up -------------------------------------------------------------------------------------------

    @staticmethod
    def _open(
        rollouts: Rollouts, objective: Objective, model: nn.Module, tuner: Tuner, settings: TrainSettings,
        prompts: Sequence[Example], held_out: Sequence[Example] | None,
    ) -> list[Example]:  # fmt: skip
        """Examples that stand for answers to come. Raises LuthierError for what cannot be done without having them."""
        if not isinstance(objective, OnlineObjective):
            raise LuthierError(f"objective '{objective.name}' learns from given answers: remove rollouts")
        if tuner.chooses:
            raise LuthierError(f"tuner '{tuner.name}' chooses by gradients of the data, and rollouts are written later")
        if settings.cache_frozen_layers is True:
            raise LuthierError("train.cache_frozen_layers: answers are new in every round: set it to false")
        if held_out and settings.eval_strategy != "no":
            raise LuthierError(f"objective '{objective.name}' has no held-out loss: set train.eval_strategy to no")
        return rollouts.open(prompts, objective, model)

    def _whole_groups(self) -> int:
        """Size of the objective's groups of rows, which no micro-batch may split. Raises LuthierError."""
        group, size = self.objective.group, self.settings.per_device_train_batch_size
        if size % group:
            raise LuthierError(
                f"train.per_device_train_batch_size {size} is not a multiple of objective.group {group}: rows of a group "
                "share one loss and are never split; change one of the two"
            )
        return group

    def _select(self, epoch: int) -> None:
        """Draw or choose what moves: once a stage, or again in epochs in which the method says so."""
        if self.tuner.chooses:
            probe = self._probe(epoch)
            self._hold(self.tuner.choose(self.plain, probe))
            self.choice_flops += probe.flops[0]
            self.record({"step": self.step_index, "epoch": epoch, "selection": self.selection.note})
        elif isinstance(self.tuner, PartialTuner):
            mode = getattr(self.tuner, "reselect", "never")
            key = {
                "stage": f"{self.seed}/{self.stage}",
                "epoch": f"{self.seed}/{self.stage}/{epoch}",
                "never": f"{self.seed}",
            }
            self._hold(self.tuner.select(self.plain, random.Random(key[mode])))

    def _hold(self, selection: Selection) -> None:
        """Make `selection`, and a task head with it, what moves."""
        selection.add_heads(self.plain)
        if self.guard is not None:
            self.guard.release()
        selection.apply(self.plain)
        self.guard = selection.guard(self.plain) if selection.partly else None
        self.selection = selection

    def _probe(self, epoch: int) -> Probe:
        """What a tuner that chooses on data may ask, the same on every process and after resuming.

        Batches are the first micro-batches of the coming epoch; rows are drawn from all examples.
        """
        if self.guard is not None:
            self.guard.release()
            self.guard = None
        step = epoch * self.plan.steps_per_epoch
        device, bare = next(self.plain.parameters()).device, self.bare
        batches = [
            self._batch(self._chunks(s)[0], s).to(device)
            for s in range(step, step + min(PROBE_BATCHES, self.plan.steps_per_epoch))
        ]

        def loss_on(batch: Batch) -> Loss:
            with self.accelerator.autocast():
                return self.objective.compute(bare, batch)

        def mean_of(batch: Batch) -> Callable[[], Tensor]:
            def mean() -> Tensor:
                loss = loss_on(batch)
                return loss.sum / loss.weight

            return mean

        def alone(n: int) -> list[Callable[[], Tensor]]:
            group, last = self.objective.group, len(self.examples)
            rows = random.Random(f"{self.seed}/look").sample(range(last), min(n * group, last))
            parts = [rows[i : i + group] for i in range(0, len(rows), group)]
            return [lambda r=part: loss_on(self._batch(r, step).to(device)).sum for part in parts]  # type: ignore[misc]

        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            lr = self.learning_rate * rate(min(step, self.total - 1), self.total, self.settings)
            return make_optimizer([{"params": parameters, "lr": lr}], self.settings)

        return Probe(
            self.plain, [mean_of(b) for b in batches], [b.ids.numel() for b in batches], optimizer, alone,
            state=dict(self.optimizer.state) if hasattr(self, "optimizer") else {},
            max_norm=self.settings.max_grad_norm if self.settings.max_grad_norm > 0 else math.inf,
            moves=self.selection if epoch > 0 else None,
        )  # fmt: skip

    def _groups(self) -> list[dict[str, Any]]:
        named = {n: p for n, p in self.plain.named_parameters() if p.requires_grad}
        if not named:
            raise LuthierError(f"tuner '{self.tuner.name}' leaves nothing to train")
        told = self.tuner.groups(self.plain)
        groups, used = [], set()
        for group in told or []:
            params = [named[n] for n in group["params"] if n in named]
            used |= set(group["params"])
            decay = {k: group[k] for k in ("weight_decay",) if k in group}  # else the run's
            groups.append({"params": params, "scale": group.get("lr_scale", 1.0), **decay})
        rest = [p for n, p in named.items() if n not in used]
        groups += [{"params": rest, "scale": 1.0}] if rest else []
        if self.settings.decay_vectors or not self.settings.weight_decay:
            return groups
        vectors = [{**g, "params": [p for p in g["params"] if p.ndim < 2], "weight_decay": 0.0} for g in groups]
        matrices = [{**g, "params": [p for p in g["params"] if p.ndim >= 2]} for g in groups]
        return [g for pair in zip(vectors, matrices, strict=True) for g in pair if g["params"]]

    def _make_optimizer(self) -> None:
        """A fresh optimiser over what moves now. Tensors that moved before and still move keep their state."""
        old = dict(self.optimizer.state) if hasattr(self, "optimizer") else {}
        optimizer = make_optimizer(self._groups(), self.settings)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in old:
                    optimizer.state[parameter] = old[parameter]
        self.optimizer = optimizer

    def _prepare(self, resume: Path | None = None) -> None:
        if self.settings.gradient_checkpointing:
            self.plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.plain.enable_input_require_grads()
        self.scalars = meter.scalars(self.plain, self.tuner)
        epoch = 0 if resume is None else self._drawn_in(json.loads((resume / STATE).read_text())["global_step"])
        if resume is not None and self.tuner.chooses:  # a choice is not made again
            self._hold(Selection.from_dict(torch.load(resume / SELECTION, weights_only=True)))
        else:
            self._select(epoch)
        self._make_optimizer()
        self.cost = self._measure()
        self.wrapped, self.prepared = self.accelerator.prepare(self.model, self.optimizer)
        if self.references.model is not None:
            self.references.model.to(self.device)
        self.scorer = Scorer(self.wrapped, self.plain, beside=self.references.model)
        if resume is not None:
            self.load(resume)
        self._share_trunk()
        self.kept = self._keep_layers(epoch)
        settings = self.settings
        if self.held_out and settings.eval_strategy != "no" and settings.metric_for_best_model != "eval_loss":
            self._metric(self.held_out_figures(self.held_out[: self.objective.group]))  # before any step is taken

    def _share_trunk(self) -> None:
        """What stands still for good is one for the tuned model and the copy that rollouts ask of the untuned one."""
        copy, still = self.references.model, isinstance(self.tuner, PartialTuner) and not self.tuner.chooses
        changes = getattr(self.tuner, "reselect", "never") == "epoch"
        if self.rollouts is None or copy is None or self.objective.teacher is not None or not still or changes:
            return
        if not self.sharded:
            batch = self._batch([0], 0).to(self.device)
            self.rollouts.trunk = share(self.plain, copy, lambda: self.bare.token_logp(batch))

    def _drawn_in(self, step: int) -> int:
        """Epoch at whose beginning that was drawn or chosen which moves in the last of `step` steps."""
        epoch = max(0, step - 1) // self.plan.steps_per_epoch
        return next(e for e in range(epoch, -1, -1) if e == 0 or self.tuner.due(e))

    def _keep_layers(self, epoch: int) -> LayerCache | None:
        """Activations below what moves since `epoch`, where they can be kept (train.cache_frozen_layers)."""
        if self.rollouts is not None:
            return None

        def run(batch: Batch) -> Tensor:
            with self.accelerator.autocast():
                return self.objective.compute(self.bare, batch).sum

        return layer_cache(
            self.plain, self.objective, self.examples, self.collate, run, self._batch([0], 0),
            self.settings.cache_frozen_layers,
            worthwhile=self.total >= (epoch + 2) * self.plan.steps_per_epoch, sharded=self.sharded,
            checkpointing=self.settings.gradient_checkpointing, folder=cache_folder() / "layers",
            noise=bool(self.settings.neftune_noise_alpha),
        )  # fmt: skip

    def _reused(self, rows: Sequence[int], batch: Batch) -> AbstractContextManager[None]:
        return nullcontext() if self.kept is None else self.kept.serving(rows, batch, self.accelerator.autocast)

    def _noise(self) -> tuple[float, int] | None:
        """Noise on the input embeddings (train.neftune_noise_alpha): anew at every step, the same after resuming."""
        alpha = self.settings.neftune_noise_alpha
        if not alpha:
            return None
        return alpha, int(np.random.default_rng([self.seed, self.stage, self.step_index, 1]).integers(2**62))

    @property
    def plain(self) -> Any:
        return self.model

    @cached_property
    def bare(self) -> Scorer:
        """Of the model without accelerate's wrapper, for costs and choices. Ask for it before operations are counted."""
        return Scorer(self.plain, beside=self.references.model).warm()

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def whole_model(self) -> nn.Module:
        """The tuned model without wrappers. Sharded parameters are gathered on the main process."""
        if not self.sharded:
            return self.plain
        state = self.accelerator.get_state_dict(self.wrapped)
        if not self.accelerator.is_main_process or self.fresh is None:
            return self.plain
        whole = self.fresh()
        whole.load_state_dict(state)
        return whole.eval()

    def _measure(self) -> dict[str, Any]:
        """Cost of one micro-batch of the first step, before anything moves."""
        rows = self._chunks(0)[0]
        batch = self._batch(rows, 0)
        bare, batch = self.bare, batch.to(next(self.plain.parameters()).device)
        self.plain.train()
        cost = meter.step_cost(
            self.plain, lambda: self.objective.compute(bare, batch).sum, batch.tokens, batch.ids.numel()
        )
        told = meter.scalars(self.plain)
        return {
            "trainable_parameters": self.selection.count(self.plain) if self.selection else told.trained,
            "head_parameters": told.head,
            "base_parameters": self.scalars.base,
            "total_parameters": told.total,
            "served_parameters": self.scalars.served,
            **cost.as_dict(),
        }

    def mean_loss(self, scorer: Scorer | None = None) -> Tensor:
        """Loss of the first micro-batch of the first step, by this model or by another one that `scorer` asks."""
        scorer = scorer or self.bare
        batch = self._batch(self._chunks(0)[0], 0).to(scorer.device)
        with self.accelerator.autocast():
            loss = self.objective.compute(scorer, batch)
        return loss.sum / loss.weight

    def _charge(self) -> None:
        """Operations since the last charge, at what a padded token costs with what moves now."""
        per_token = (self.cost["forward_flops"] + self.cost["backward_flops"]) / max(1, self.cost["padded_tokens"])
        self.train_flops += per_token * (self.padded - self.charged)
        self.charged = self.padded
        if self.kept is not None:
            self.train_flops -= self.kept.saved_flops
            self.kept.served = 0

    # batches ------------------------------------------------------------------------------------------

    def _chunks(self, step: int) -> list[list[int]]:
        """Micro-batches of a step over all processes, shortest examples first."""
        rows, size = self.plan.step(step), self.settings.per_device_train_batch_size
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _mine(self, chunks: Sequence[list[int]]) -> list[tuple[list[int], bool]]:
        """(rows, counts) of this process's share of micro-batches. All processes get equally many; fillers do not count."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        rounds = -(-len(chunks) // world)
        return [
            (chunks[i], True) if i < len(chunks) else (chunks[0], False) for i in range(rank, rounds * world, world)
        ]

    def _batch(self, rows: Sequence[int], step: int) -> Batch:
        rng = np.random.default_rng([self.seed, self.stage, step])
        told = self.references
        return self.objective.view(self._group(rows, self.examples, told.answers, told.top), step, self.total, rng)

    def _group(
        self, rows: Sequence[int], examples: Sequence[Example], logp: Sequence[Tensor] | None,
        top: Sequence[Top] | None = None,
    ) -> Batch:  # fmt: skip
        some = [examples[i] for i in rows]
        batch = self.collate(some)
        if logp is not None:
            batch.reference = torch.cat([logp[i] for i in rows])
        if top is not None:
            order = [rows[i] for row in self.collate.rows(some) for i in row]
            batch.top_ids, batch.top_logp = (torch.cat(part) for part in zip(*(top[i] for i in order), strict=True))
        return batch

    def _shared(
        self, chunks: Sequence[tuple[Sequence[int], bool]], companions: Sequence[Example], logp: Sequence[Tensor] | None
    ) -> tuple[Tensor, int]:
        """Mean over all micro-batches and processes of what the objective asks of companions; padded tokens it took."""
        total: Tensor | None = None
        weight, padded = 0.0, 0
        with at_rest(self.wrapped), self.accelerator.autocast():
            for rows, counts in chunks:
                batch = self._group(rows, companions, logp)
                padded += batch.ids.numel()
                value, n = self.objective.statistic(self.scorer, batch.to(self.device))
                value = value.double() * counts
                total, weight = value if total is None else total + value, weight + n * counts
        assert total is not None
        told = torch.cat([total, total.new_tensor([weight])])
        if self.accelerator.num_processes > 1:
            told = self.accelerator.reduce(told, "sum")
        return (told[:-1] / told[-1]).float(), padded

    # one step -----------------------------------------------------------------------------------------

    def _answers(self) -> None:
        """Where a round begins: new answers to its prompts, in place of those that stood there."""
        steps = self.plan.of_round(self.step_index)
        if self.rollouts is None or self.rollouts.begun == steps.start:
            return
        assert isinstance(self.objective, OnlineObjective) and isinstance(self.examples, list)
        if self.sharded:
            raise LuthierError(
                "rollouts do not work with sharded parameters: use one device, or several with whole copies"
            )
        chunks = [c for s in steps[: len(steps) // self.plan.passes] for c in self._chunks(s)]
        found = self.rollouts.begin(
            steps.start, chunks, self.objective, self.scorer, self.collate, self.accelerator.autocast,
            (self.seed, self.stage),
        )  # fmt: skip
        self._take_answers()
        read = 3 if self.objective.reference else 2  # as they are written, and by the one or two models that are asked
        each = self.cost["forward_flops"] / max(1, self.cost["padded_tokens"])
        self.train_flops += read * each * sum(len(e) for e in self.rollouts.answered.values())
        self.record({"step": self.step_index, "epoch": self.step_index / self.plan.steps_per_epoch, **found})

    def _take_answers(self) -> None:
        assert self.rollouts is not None and isinstance(self.examples, list)
        for i, example in self.rollouts.answered.items():
            self.examples[i] = example

    def _total_weight(self, weights: float) -> float:
        if self.accelerator.num_processes == 1:
            return weights
        told = torch.tensor([weights], dtype=torch.float64, device=self.device)
        return float(self.accelerator.reduce(told, "sum").item())

    def _step(self) -> tuple[Tensor, float, dict[str, tuple[Tensor, float]], Tensor]:
        """Forward and backward over the micro-batches of this step, clip, and take the step."""
        if self.guard is not None:
            self.guard.begin(self.step_index)
        self.tuner.before_step(self.plain, random.Random(f"{self.seed}/{self.stage}/step {self.step_index}"))
        shares = self._mine(self._chunks(self.step_index))
        mine = [(self._batch(rows, self.step_index), counts) for rows, counts in shares]
        weights = [self.objective.weight(b) if counts else 0.0 for b, counts in mine]
        total = self._total_weight(sum(weights))
        if total == 0:
            raise LuthierError(
                f"step {self.step_index + 1}: no token or row counts: check the loss mask (data preview)"
            )
        scale = self.accelerator.num_processes / total
        shared = None
        if self.companions is not None:
            shared, padded = self._shared(shares, self.companions, self.references.companions)
            self.train_flops += self.cost["forward_flops"] / max(1, self.cost["padded_tokens"]) * padded
        noise = self._noise()
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        figures: dict[str, tuple[Tensor, float]] = {}
        for i, (batch, counts) in enumerate(mine):
            last = i == len(mine) - 1
            tokens = batch.tokens  # counted before the batch moves: asking a device would wait for it
            batch = replace(batch.to(self.device), shared=shared, noise=noise)
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast(), self._reused(shares[i][0], batch):
                    loss = self.objective.compute(self.scorer, batch)
                self._check_weight(loss, weights[i], counts)
                self.accelerator.backward(loss.sum * (scale if counts else 0.0))
            if counts:
                summed += loss.sum.detach().double()
                self.tokens += tokens
                self.padded += batch.ids.numel()
                for name, (value, weight) in loss.figures.items():
                    old = figures.get(name, (torch.zeros((), device=self.device), 0.0))
                    figures[name] = (old[0] + value.detach(), old[1] + weight)
        if (penalty := self._penalise()) is not None:
            figures["penalty"] = (penalty, 1.0)
        norm = self._clip()
        for group in self.prepared.param_groups:
            group["lr"] = self.learning_rate * group["scale"] * rate(self.step_index, self.total, self.settings)
        self._check_finite(summed, norm)
        self._stepper.step()
        if self.guard is not None:
            self.guard.restore()
        self.tuner.after_step(self.plain, self.step_index + 1, self.total)
        self._stepper.zero_grad(set_to_none=True)
        return summed, sum(weights), figures, norm

    @property
    def _stepper(self) -> torch.optim.Optimizer:
        """What takes the step: the bare optimiser where accelerate would only look for packages first, at every step."""
        adds = self.accelerator.scaler is not None or self.accelerator.distributed_type not in UNSHARDED
        return self.prepared if adds else self.optimizer

    def _check_weight(self, loss: Loss, told: float, counts: bool) -> None:
        if counts and loss.weight != told:
            raise LuthierError(f"objective '{self.objective.name}' announced weight {told} but returned {loss.weight}")

    def _penalise(self) -> Tensor | None:
        """Adds the gradients of what the tuner adds to the loss of a step; its value."""
        value = self.tuner.penalty(self.plain)
        if value is None:
            return None
        if self.sharded:
            raise LuthierError(f"tuner '{self.tuner.name}' does not work with sharded parameters: use whole copies")
        moving = [p for p in self.plain.parameters() if p.requires_grad]
        scaled = value if self.accelerator.scaler is None else self.accelerator.scaler.scale(value)
        for parameter, gradient in zip(moving, torch.autograd.grad(scaled, moving, allow_unused=True), strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return value.detach()

    def _clip(self) -> Tensor:
        limit = self.settings.max_grad_norm if self.settings.max_grad_norm > 0 else math.inf
        norm = self.accelerator.clip_grad_norm_([p for g in self.prepared.param_groups for p in g["params"]], limit)
        return norm if norm is not None else torch.zeros(())

    def _check_finite(self, summed: Tensor, norm: Tensor) -> None:
        if self.settings.fp16:  # the scaler skips steps that overflow; only a loss that is not finite is fatal
            norm = torch.zeros(())
        if not (math.isfinite(summed.item()) and math.isfinite(float(norm))):
            self.prepared.zero_grad(set_to_none=True)
            saved = self.save() if self.run is not None and self.step_index > 0 else None
            where = f"; the weights before it are in {saved}" if saved else "; no step was taken"
            raise Diverged(
                f"step {self.step_index + 1}: the loss or its gradient is not finite{where}. "
                "Lower learning_rate, raise warmup_ratio, or look for broken rows with `luthier data preview`"
            )

    # the run ------------------------------------------------------------------------------------------

    def fit(self, resume: Path | None = None) -> Fitted:
        """Train to the end. Raises Diverged or Interrupted; both leave a checkpoint behind where a run folder is given."""
        seed_everything(self.seed, self.settings.full_determinism)
        self._prepare(resume)
        self._tell("start")
        window = _Window()
        self.wrapped.train()
        with _signals() as asked:
            while self.step_index < self.total and self.stop_reason is None:
                self._epoch_begins()
                begun = time.perf_counter()
                self._answers()
                summed, weight, figures, norm = self._step()
                self.step_index += 1
                self.step_seconds.append(time.perf_counter() - begun)
                self.seconds += self.step_seconds[-1]
                window.add(summed, weight, figures, norm)
                self._tell("step")
                self._after_step(window)
                if asked():
                    self._leave()
        self.fitted = self._finish()
        self._tell("end")
        return self.fitted

    def _epoch_begins(self) -> None:
        epoch, at = divmod(self.step_index, self.plan.steps_per_epoch)
        if at == 0:
            if epoch > 0 and self.tuner.due(epoch):
                self._reselect(epoch)
            self._tell("epoch", epoch)

    def _reselect(self, epoch: int) -> None:
        if self.accelerator.distributed_type not in UNSHARDED:
            raise LuthierError("tuner.reselect: epoch does not work with sharded parameters: use stage")
        self._charge()
        self._select(epoch)
        self._make_optimizer()
        self.cost = self._measure()
        self.wrapped, self.prepared = self.accelerator.prepare(self.plain, self.optimizer)
        self.scorer.model = self.wrapped
        self.kept = self._keep_layers(epoch)

    def _after_step(self, window: _Window) -> None:
        step, settings = self.step_index, self.settings
        last = step == self.total
        epoch_ends = step % self.plan.steps_per_epoch == 0
        if step % settings.logging_steps == 0 or last:
            self._log(window)
        if self.held_out and (
            (settings.eval_strategy == "epoch" and (epoch_ends or last))
            or (settings.eval_strategy == "steps" and step % (settings.eval_steps or settings.logging_steps) == 0)
        ):
            self._evaluate()
        if self.run is not None and (
            (settings.save_strategy == "steps" and step % settings.save_steps == 0)
            or (settings.save_strategy == "epoch" and epoch_ends)
        ):
            self.save()

    def _log(self, window: _Window) -> None:
        row = window.close(self)
        row["learning_rate"] = self.optimizer.param_groups[-1]["lr"]
        row["tokens_per_second"] = round(self.tokens * self.accelerator.num_processes / max(self.seconds, 1e-9), 1)
        self.record(row)
        self._tell("log", row)
        limit = self.settings.loss_watchdog_threshold
        if limit is not None:
            recent = [r["loss"] for r in self.history if "loss" in r][-self.settings.loss_watchdog_patience :]
            if len(recent) == self.settings.loss_watchdog_patience and min(recent) > limit:
                self.stop_reason = f"loss stayed above loss_watchdog_threshold {limit}"

    def record(self, row: dict[str, Any]) -> None:
        """A row of the log: it is kept with checkpoints and written to metrics.jsonl."""
        self.history.append(row)
        if self.run is not None and self.accelerator.is_main_process:
            self.run.log(row)

    def held_out_loss(self, examples: Sequence[Example]) -> float:
        """Mean loss over examples, with dropout off. Where an objective needs references, over those held out alone."""
        return self.held_out_figures(examples)["loss"]

    @torch.no_grad()
    def held_out_figures(self, examples: Sequence[Example]) -> dict[str, float]:
        """The same, and what else the objective tells of examples, by name."""
        self.wrapped.eval()
        group = self.objective.group
        size = max(1, self.settings.per_device_eval_batch_size // group) * group
        lengths = [len(e) for e in examples]
        mine = self._mine(Plan(lengths, size, shuffle=False, window_steps=len(lengths), group=group).epoch(0))
        window = _Window()
        companions, shared = self.objective.companions(examples), None
        if companions is not None:
            shared, _ = self._shared(mine, companions, self.references.held_companions)
        for rows, counts in mine:
            batch = self._group(rows, examples, self.references.held_out, self.references.held_top)
            batch = self.objective.view(batch, HELD_OUT, self.total, np.random.default_rng(0)).to(self.device)
            batch.shared = shared
            with self.accelerator.autocast():
                loss = self.objective.compute(self.scorer, batch)
            figures = {
                name: (value.double() * counts, weight * counts) for name, (value, weight) in loss.figures.items()
            }
            window.add(loss.sum.double() * counts, loss.weight * counts, figures, window.norm)
        self.wrapped.train()
        return window.means(self)

    def _evaluate(self) -> None:
        begun = time.perf_counter()
        found = self.held_out_figures(self.held_out or [])
        seconds = time.perf_counter() - begun
        row = {
            "step": self.step_index,
            "epoch": self.step_index / self.plan.steps_per_epoch,
            **{f"eval_{name}": value for name, value in found.items()},
            "eval_runtime": round(seconds, 3),
            "eval_samples_per_second": round(len(self.held_out or []) / max(seconds, 1e-9), 2),
        }
        self.record(row)
        self._tell("evaluated", row)
        metric = found[self._metric(found)]
        better = self.best is None or (
            (metric > self.best[0]) == self.settings.higher_is_better and metric != self.best[0]
        )
        if better:
            name = f"checkpoint-{self.step_index}"
            self.best = (metric, name)
            self.patience_left = self.settings.early_stopping_patience
            if self.settings.load_best_model_at_end and self.run is not None:
                self.save()
        elif self.patience_left is not None:
            self.patience_left -= 1
            if self.patience_left <= 0:
                self.stop_reason = (
                    f"no better {self.settings.metric_for_best_model} in early_stopping_patience evaluations"
                )

    def _metric(self, found: Mapping[str, float]) -> str:
        """What the best model is chosen by, of an evaluation's figures. Raises LuthierError where it is none of them."""
        asked = self.settings.metric_for_best_model
        name = asked.removeprefix("eval_")
        if name not in found:
            told = ", ".join(f"eval_{n}" for n in found)
            raise LuthierError(
                f"train.metric_for_best_model is '{asked}': an evaluation of {self.objective.name} tells {told}"
            )
        return name

    def _leave(self) -> None:
        saved = self.save() if self.run is not None else None
        raise Interrupted(
            f"stopped after step {self.step_index}" + (f", saved in {saved}: continue with --resume" if saved else "")
        )

    def _finish(self) -> Fitted:
        if self.settings.load_best_model_at_end and self.best is not None and self.run is not None:
            self._load_weights(self.run.path / self.best[1])
        losses = [r["loss"] for r in self.history if "loss" in r]
        seconds = max(self.seconds, 1e-9)
        self._charge()
        cost = {
            **{k: v for k, v in self.cost.items() if k not in ("tokens", "padded_tokens")},
            "moved_parameters": self.cost["trainable_parameters"] - (self.guard.idle() if self.guard else 0),
            "optimizer_bytes": meter.optimizer_bytes(self.optimizer),
            "peak_memory_bytes": meter.peak_memory_bytes(self.plain, self.optimizer, self.cost["saved_tensor_bytes"]),
            "train_seconds": round(self.seconds, 3),
            "step_seconds": meter.step_seconds(self.step_seconds),
            "steps": self.step_index,
            "tokens": self.tokens * self.accelerator.num_processes,
            "tokens_per_second": self.tokens * self.accelerator.num_processes / seconds,
            "choice_flops": self.choice_flops * self.accelerator.num_processes,
            "train_flops": (self.train_flops + self.choice_flops) * self.accelerator.num_processes,
        }
        self.wrapped.eval()
        detach(self.model)
        return Fitted(
            self.step_index, self.seconds, cost["tokens"], losses[-1] if losses else math.nan, cost,
            self.best[1] if self.best else None, self.stop_reason, self.history,
        )  # fmt: skip

    def _tell(self, event: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *values)

    # state --------------------------------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        return self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def save(self) -> Path:
        """A checkpoint of the state after `step_index` steps. All processes call it."""
        assert self.run is not None
        path = self.run.path / f"checkpoint-{self.step_index}"
        self.accelerator.wait_for_everyone()
        if self.sharded:
            self.accelerator.save_state(str(path))
            if self.accelerator.is_main_process:
                self._write_state(path)
        else:
            if not self.accelerator.is_main_process:
                torch.save(_rng_state(), self.run.path / f".rng-{self.accelerator.process_index}.pth")
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.run.save_checkpoint(self.step_index, self._write)
        if self.accelerator.is_main_process:
            self.run.rotate(self.settings.save_total_limit, self.best[1] if self.best else None)
        self.accelerator.wait_for_everyone()
        self._tell("saved", path)
        return path

    def _state(self) -> dict[str, Any]:
        self._charge()
        return {
            "global_step": self.step_index,
            "max_steps": self.total,
            "epoch": self.step_index / self.plan.steps_per_epoch,
            "best_metric": self.best[0] if self.best else None,
            "best_model_checkpoint": self.best[1] if self.best else None,
            "patience_left": self.patience_left,
            "tokens": self.tokens,
            "padded": self.padded,
            "seconds": self.seconds,
            "train_flops": self.train_flops,
            "choice_flops": self.choice_flops,
            "log_history": self.history,
        }

    def _write(self, folder: Path) -> None:
        assert self.run is not None
        self.plain.save_pretrained(folder)
        if self.tuner.artefact == "adapter":
            moving = {n: p.detach().cpu().contiguous() for n, p in self.plain.named_parameters() if p.requires_grad}
            own = ((n, b) for n, b in self.plain.named_buffers() if ".luthier_" in n)  # what an adapter drew
            moving |= {n: b.cpu().contiguous() for n, b in own}
            save_file(moving, folder / "trainable.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save({"last_step": self.step_index}, folder / "scheduler.pt")
        torch.save(_rng_state(), folder / "rng_state.pth")
        for rank in range(1, self.accelerator.num_processes):
            part = self.run.path / f".rng-{rank}.pth"
            (folder / f"rng_state_{rank}.pth").write_bytes(part.read_bytes())
            part.unlink()
        if self.accelerator.scaler is not None:
            torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
        self._write_state(folder)

    def _write_state(self, folder: Path) -> None:
        (folder / STATE).write_text(json.dumps(self._state()))
        if self.tuner.chooses:
            torch.save(self.selection.as_dict(), folder / SELECTION)
        if self.rollouts is not None:
            torch.save(self.rollouts.state(), folder / ROLLOUTS)

    def load(self, folder: Path) -> None:
        """Restore model, optimiser, random generators and position from a checkpoint; what moves is as it was then."""
        state = json.loads((folder / STATE).read_text())
        self.step_index = state["global_step"]
        if self.sharded:
            self.accelerator.load_state(str(folder))
        else:
            self._load_weights(folder)
            self.optimizer.load_state_dict(
                torch.load(folder / "optimizer.pt", weights_only=True, map_location=self.device)
            )
            rank = self.accelerator.process_index
            name = "rng_state.pth" if rank == 0 else f"rng_state_{rank}.pth"
            _set_rng_state(torch.load(folder / name, weights_only=True))
            if self.accelerator.scaler is not None and (folder / "scaler.pt").exists():
                self.accelerator.scaler.load_state_dict(torch.load(folder / "scaler.pt", weights_only=True))
        self.best = (state["best_metric"], state["best_model_checkpoint"]) if state["best_model_checkpoint"] else None
        self.patience_left, self.history = state["patience_left"], state["log_history"]
        self.tokens, self.padded, self.seconds = state["tokens"], state["padded"], state["seconds"]
        self.train_flops, self.choice_flops = state["train_flops"], state["choice_flops"]
        self.charged = state["padded"]
        if self.rollouts is not None:
            self.rollouts.load(torch.load(folder / ROLLOUTS, weights_only=True))
            self._take_answers()
        if self.guard is not None:
            self._refresh_guard()
        if self.run is not None and self.accelerator.is_main_process:
            self.run.rewind(self.step_index)

    def _refresh_guard(self) -> None:
        assert self.guard is not None
        self.guard.release()
        self.guard = self.selection.guard(self.plain)

    def _load_weights(self, folder: Path) -> None:
        """Tensors into the model in place; names as saved."""
        if self.tuner.artefact == "adapter":
            state = load_file(folder / "trainable.safetensors")
        else:
            state = {}
            for file in sorted(folder.glob("model*.safetensors")):
                state |= load_file(file)
        own = dict(self.plain.named_parameters(remove_duplicate=False)) | dict(self.plain.named_buffers())
        missing = [n for n in state if n not in own]
        if missing:
            raise LuthierError(f"{folder}: tensor '{missing[0]}' has no place in this model: was the recipe changed?")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)


class _Window:
    """Sums between two log lines."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.loss: Tensor | float = 0.0
        self.weight = 0.0
        self.figures: dict[str, tuple[Tensor, float]] = {}
        self.norm: Tensor = torch.zeros(())

    def add(self, loss: Tensor, weight: float, figures: dict[str, tuple[Tensor, float]], norm: Tensor) -> None:
        self.loss = self.loss + loss
        self.weight += weight
        self.norm = norm
        for name, (value, w) in figures.items():
            old = self.figures.get(name, (0.0, 0.0))
            self.figures[name] = (old[0] + value, old[1] + w)

    def means(self, loop: Loop) -> dict[str, float]:
        """The loss and each figure, over all processes."""
        names = list(self.figures)
        values = [float(self.loss), self.weight, *(float(v) for n in names for v in self.figures[n])]
        if loop.accelerator.num_processes > 1:
            told = torch.tensor(values, dtype=torch.float64, device=loop.device)
            values = loop.accelerator.reduce(told, "sum").tolist()
        pairs = zip(["loss", *names], values[::2], values[1::2], strict=True)
        return {name: total / max(weight, 1e-12) for name, total, weight in pairs}

    def close(self, loop: Loop) -> dict[str, Any]:
        row = {
            "step": loop.step_index,
            "epoch": round(loop.step_index / loop.plan.steps_per_epoch, 6),
            **self.means(loop),
            "grad_norm": float(self.norm),
        }
        self.reset()
        return row


# ------------------------------------------------------------------------------------------------- helpers


def attach(objective: Objective, model: nn.Module) -> nn.Module | None:
    """Give the wrapped model what the objective trains beside it, unless it is there already; what was given."""
    if not isinstance(objective, OnlineObjective) or OWN_HEAD in dict(model.named_children()):
        return None
    head = objective.head(model)
    if head is not None:
        model.add_module(OWN_HEAD, head)
    return head


def detach(model: nn.Module) -> None:
    """Take away what `attach` gave."""
    if OWN_HEAD in dict(model.named_children()):
        delattr(model, OWN_HEAD)


def make_accelerator(settings: TrainSettings, folder: Path | None = None) -> Accelerator:
    """accelerate's engine with the precision asked for. Launchers set everything else through the environment."""
    precision = "bf16" if settings.bf16 else "fp16" if settings.fp16 else None
    before = AcceleratorState._shared_state.get("_mixed_precision", "no")
    if before != (precision or "no"):  # accelerate fixes the precision of a process at its first use; runs may differ
        AcceleratorState._reset_state()
    trackers = None if settings.report_to in ("none", [], None) else settings.report_to
    return Accelerator(mixed_precision=precision, log_with=trackers, project_dir=folder if trackers else None)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Python, numpy and torch generators. `deterministic` refuses kernels that are not."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate((3, tuple(state["python"]), state["python_gauss"]))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


@contextmanager
def _signals() -> Any:
    """Ctrl-C and SIGTERM ask for a stop after the current step; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
