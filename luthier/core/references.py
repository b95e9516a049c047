"""Outputs of the reference model, computed once and kept on disk by the hash of model and data.

    ref[a] = log pi_ref(answer a | its prompt)              one number an answer

The reference is the untuned model: nothing of it is needed during training, so no second model is in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core.batch import GroupExample
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import collator
from luthier.core.runs import cache_folder, hash_tensors


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
    key = hashlib.sha256(f"{hash_tensors(model.state_dict().items())}/{data_hash(examples)}".encode()).hexdigest()
    file = cache_folder() / "references" / f"{key}.safetensors"
    if file.exists():
        flat = load_file(file)["logp"]
        return list(flat.split([len(e.answers) for e in examples])), True
    scorer, training = Scorer(model), model.training
    collate = collator(model, pad, examples, settings)  # the layout of training: a prompt is shared where that pays
    model.eval()
    size = settings.per_device_eval_batch_size
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    out: list[Tensor] = [torch.empty(0)] * len(examples)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = collate([examples[i] for i in rows]).to(scorer.device)
        logp = scorer.answer_logp(batch).float().cpu()
        for i, part in zip(rows, logp.split([len(examples[i].answers) for i in rows]), strict=True):
            out[i] = part
    model.train(training)
    _keep(file, torch.cat(out))
    return out, False


def _keep(file: Path, logp: Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".part-{os.getpid()}-{file.name}")
    try:
        save_file({"logp": logp}, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
