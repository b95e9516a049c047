"""The untuned model as a reference, or another one as a teacher: what it says, computed once and kept on disk, or the model.

    ref[a] = log pi_ref(answer a | its prompt)              by the hash of the model and of a block of examples
    top[n] = its k likeliest tokens at scored position n    likewise (core/teacher.py)

A block is `BLOCK` examples that follow one another: data sets that begin alike share what was asked about their beginning,
as nested subsets do, whatever is trained on them. A number depends on its block alone, never on what is stored already.
Where these numbers are all that an objective needs, no second model is in memory. One that needs whole distributions asks
the model itself at every step: the tuned one with its adapter off, or a frozen copy where that cannot be.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core.batch import Example, GroupExample
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError, Objective, Tuner
from luthier.core.runs import hash_tensors
from luthier.core.sources import cache_folder
from luthier.core.teacher import TeacherStore, Top

BLOCK = 256
"""Examples whose reference is one file."""


@dataclass
class References:
    """What a run needs of the untuned model, by its objective's `reference`.

    answers          log-probabilities of each training example's answers;  companions  of the objective's companions
    held_out         the same of held-out examples;  held_companions  of their companions
    top              a teacher's likeliest tokens at the scored positions of each example;  held_top  of held-out examples
    model            a teacher; or a frozen copy, where the tuned model cannot be switched back
    reused           whether the stored ones were all there already
    """

    answers: Sequence[Tensor] | None = None
    companions: Sequence[Tensor] | None = None
    held_out: Sequence[Tensor] | None = None
    held_companions: Sequence[Tensor] | None = None
    top: Sequence[Top] | None = None
    held_top: Sequence[Top] | None = None
    model: nn.Module | None = None
    reused: bool = True


def references(
    model: nn.Module,
    tuner: Tuner,
    objective: Objective,
    examples: Sequence[Example],
    pad: int,
    settings: TrainSettings,
    held_out: Sequence[Example] | None = None,
    teacher: Any = None,
) -> References | None:
    """Ask the untuned model, before it is wrapped, for what `objective` needs; None where that is nothing.

    `teacher`, a model or a store of what one said, stands in its place where the objective names one.
    """
    if not objective.reference:
        return None
    if objective.reference == "top":
        if not isinstance(teacher, TeacherStore):
            raise LuthierError(
                f"objective '{objective.name}' needs what a teacher said: name it with objective.teacher"
            )
        return References(top=teacher.of(examples), held_top=None if held_out is None else teacher.of(held_out))
    if objective.reference == "model":
        return References(model=untuned_copy(model, tuner) if teacher is None else teacher)
    found = References()

    def stored(of: Sequence[Example] | None) -> Sequence[Tensor] | None:
        if of is None:
            return None
        logp, reused = reference_logp(model, of, pad, settings)  # type: ignore[arg-type]
        found.reused &= reused
        return logp

    found.answers, found.companions = stored(examples), stored(objective.companions(examples))
    if held_out is not None:
        found.held_out, found.held_companions = stored(held_out), stored(objective.companions(held_out))
    return found


def untuned_copy(model: nn.Module, tuner: Tuner) -> nn.Module | None:
    """A frozen copy of a model that `tuner` has not wrapped yet; None where its adapter can be switched off."""
    if tuner.artefact == "adapter" and "off" in tuner.capabilities:
        return None
    return copy.deepcopy(model).requires_grad_(False).eval()


def with_untuned(found: References | None, model: nn.Module, tuner: Tuner, objective: Objective) -> References:
    """The same references with the untuned model kept beside as well, for what compares with it during a run."""
    if objective.reference == "model" and objective.teacher is not None:
        raise LuthierError("the model beside is a teacher: no other untuned model can be kept for an analysis")
    if found is not None and found.model is not None:
        return found
    return replace(found or References(), model=untuned_copy(model, tuner))


def data_hash(examples: Sequence[GroupExample]) -> str:
    digest = hashlib.sha256()
    for e in examples:
        for part in (e.prompt, *e.answers):
            digest.update(len(part).to_bytes(4, "little"))
            digest.update(np.asarray(part, dtype=np.int32).tobytes())
    return digest.hexdigest()


@torch.no_grad()
def reference_logp(
    model: nn.Module, examples: Sequence[GroupExample], pad: int, settings: TrainSettings
) -> tuple[list[Tensor], bool]:
    """Log-probabilities of each example's answers under `model` (untuned), and whether they were in the store."""
    folder, out, reused = cache_folder() / "references", list[Tensor](), True
    weights = hash_tensors(model.state_dict().items())
    for start in range(0, len(examples), BLOCK):
        block = examples[start : start + BLOCK]
        file = folder / f"{hashlib.sha256(f'{weights}/{data_hash(block)}'.encode()).hexdigest()}.safetensors"
        if not file.exists():
            _keep(file, torch.cat(_asked(model, block, pad, settings)))
            reused = False
        out += load_file(file)["logp"].split([len(e.answers) for e in block])
    return out, reused


def _asked(model: nn.Module, block: Sequence[GroupExample], pad: int, settings: TrainSettings) -> list[Tensor]:
    from luthier.core.loop import collator  # which itself knows what References are

    scorer, training = Scorer(model), model.training
    collate = collator(model, pad, block, settings)  # the layout of training: a prompt is shared where that pays
    model.eval()
    size = settings.per_device_eval_batch_size
    order = sorted(range(len(block)), key=lambda i: len(block[i]))
    out: list[Tensor] = [torch.empty(0)] * len(block)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = collate([block[i] for i in rows]).to(scorer.device)
        logp = scorer.answer_logp(batch).float().cpu()
        for i, part in zip(rows, logp.split([len(block[i].answers) for i in rows]), strict=True):
            out[i] = part
    model.train(training)
    return out


def _keep(file: Path, logp: Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".part-{os.getpid()}-{file.name}")
    try:
        save_file({"logp": logp}, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
