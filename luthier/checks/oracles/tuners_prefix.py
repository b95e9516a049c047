"""peft's own prefix tuning on unpadded rows, and the closed form of card 19 in float64: a gated sum of two attentions."""

from __future__ import annotations

from typing import Any

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor

from luthier.checks._compare import close, differ
from luthier.checks._models import WORLDS
from luthier.checks.oracles import _unified as dense
from luthier.checks.oracles._tuners import method, trained, worlds


@torch.no_grad()
def oracle_peft() -> None:
    """The same keys and values through peft's prompt encoder and a filled cache; positions of the text from 0."""
    tuner = method(__name__)
    for world in (w for w in WORLDS if w.kind == "decoder"):
        model, plain = trained(tuner, world), world.base()
        found = dense.prefixes(model, plain)
        row = [torch.from_numpy(half).transpose(0, 1).flatten(1) for pair in found.values() for half in pair]
        theirs: Any = get_peft_model(
            world.base(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tuner.length)
        ).eval()
        table: Tensor = theirs.prompt_encoder["default"].embedding.weight
        table.data.copy_(torch.cat(row, 1))  # (l, layers 2 G d)
        for example in world.examples:
            ids = torch.tensor([example.ids])
            wanted = theirs.base_model(
                input_ids=ids,
                attention_mask=torch.ones(1, tuner.length + ids.shape[1], dtype=torch.long),
                position_ids=torch.arange(ids.shape[1])[None],
                past_key_values=theirs.get_prompt(1),
            ).logits
            close(model(input_ids=ids).logits, wanted, f"{world.label}: logits and those of peft's prefix")


def oracle_gated_sum() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        model, plain = trained(tuner, world), world.base()
        heads = {n: dense.gated_prefix(*pair) for n, pair in dense.prefixes(model, plain).items()}
        differ(world.said(model), world.said(world.base()), f"{world.label}: trained model and base")
        said = world.said(dense.with_attention(plain, heads, scaled_query=True))
        close(said, world.said(model), f"{world.label}: gated sum and prefix")
