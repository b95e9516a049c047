"""peft's LN_TUNING on the norms, found by their names in each architecture: the same answers after the same steps."""

from __future__ import annotations

import torch
from peft import LNTuningConfig, get_peft_model

from luthier.checks import tuners
from luthier.checks._compare import close, differ
from luthier.checks.oracles._tuners import method, worlds

NORMS = {
    "llama": r".*(input_layernorm|post_attention_layernorm|model\.norm)",
    "gpt2": r".*ln_(1|2|f)",
    "bert": r".*LayerNorm",
    "t5": r".*layer_norm",
}


def oracle_peft() -> None:
    tuner = method(__name__)
    for world in worlds(tuner):
        wanted = get_peft_model(world.base(), LNTuningConfig(target_modules=NORMS[world.architecture]))
        mine = tuners.wrapped(tuner, world)
        with torch.enable_grad():
            world.train(wanted, 6)
            world.train(mine, 6)
        close(world.said(mine), world.said(wanted), f"{world.label}: peft and luthier after training")
        differ(world.said(mine), world.said(world.base()), f"{world.label}: tuned and base")
