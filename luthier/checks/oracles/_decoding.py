"""What oracles of decoders share: transformers' `generate` on single unpadded prompts."""

from __future__ import annotations

from typing import Any

import torch

from luthier.checks._compare import require
from luthier.checks._models import PAD
from luthier.checks.decoding import PROMPTS, worlds
from luthier.core import catalog
from luthier.core.method import Limits


def method(file_name: str, **options: Any) -> Any:
    found = catalog.load("decoding", file_name.rsplit("decoding_", 1)[-1]).example()
    return type(found)(**{**vars(found), **options})


@torch.no_grad()
def against_transformers(file_name: str, **options: Any) -> None:
    """`options` are named as transformers names them."""
    decoder = method(file_name, **options)
    for world in worlds(decoder):
        model = world.model()
        free = decoder.generate(model, PROMPTS, Limits(max_new_tokens=7, pad_id=PAD))
        for stop_ids in ((), (free[0].ids[2],)):
            found = decoder.generate(model, PROMPTS, Limits(max_new_tokens=7, pad_id=PAD, stop_ids=stop_ids))
            for prompt, generation in zip(PROMPTS, found):
                ids = torch.tensor([list(prompt)])
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False,
                    eos_token_id=list(stop_ids) or None, pad_token_id=PAD, **{"num_beams": 1, **options},
                )[0].tolist()  # fmt: skip
                said = out[1:] if world.kind == "encoder-decoder" else out[len(prompt) :]
                end = next((t for t, token in enumerate(said) if token in stop_ids), None)
                wanted = said if end is None else said[:end]
                require(generation.ids == wanted, f"{world.label}: {generation.ids}, transformers says {wanted}")
                require(generation.stopped == (end is not None), f"{world.label}: stopped={generation.stopped}")
