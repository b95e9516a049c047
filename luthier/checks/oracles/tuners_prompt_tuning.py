"""peft's own prompt tuning with the same vectors, and a hand-built run on input embeddings; unpadded rows."""

from __future__ import annotations

from typing import Any

import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from luthier.checks._compare import close
from luthier.checks._models import WORLDS, World
from luthier.checks.oracles._prompts import hand_built
from luthier.checks.oracles._tuners import method, tensors_by_target, trained

DECODERS = [w for w in WORLDS if w.kind == "decoder"]


def _vectors(model: nn.Module) -> Tensor:
    (tensors,) = tensors_by_target(model).values()
    return tensors["rows"].float()


def _ids(world: World) -> list[Tensor]:
    return [torch.tensor([e.ids]) for e in world.examples]


@torch.no_grad()
def oracle_peft() -> None:
    tuner = method(__name__)
    for world in DECODERS:
        model = trained(tuner, world)
        vectors = _vectors(model)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(vectors))
        theirs: Any = get_peft_model(world.base(), config).eval()
        theirs.prompt_encoder["default"].embedding.weight.data.copy_(vectors)
        for ids in _ids(world):
            mask = torch.ones_like(ids)
            wanted = theirs(input_ids=ids, attention_mask=mask).logits[:, len(vectors) :]
            close(model(input_ids=ids, attention_mask=mask).logits, wanted, f"{world.label}: logits and peft's")


def oracle_inputs_embeds() -> None:
    hand_built(method(__name__), lambda tensors, world: (tensors["rows"], None))
