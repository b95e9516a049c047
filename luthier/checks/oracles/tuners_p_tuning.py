"""peft's PromptEncoder with the same weights, and a hand-built run on its vectors in float64."""

from __future__ import annotations

import numpy as np
import torch
from peft import PromptEncoder, PromptEncoderConfig

from luthier.checks._compare import require
from luthier.checks._models import WIDTH, World
from luthier.checks.oracles._prompts import Built, hand_built
from luthier.checks.oracles._tuners import method


def _check(encoder: str) -> None:
    tuner = method(__name__, encoder=encoder)
    config = PromptEncoderConfig(
        num_virtual_tokens=tuner.tokens, token_dim=WIDTH, num_transformer_submodules=1,
        encoder_reparameterization_type=encoder.upper(), encoder_hidden_size=tuner.hidden,
        encoder_num_layers=2, encoder_dropout=0.0,
    )  # fmt: skip

    def build(tensors: dict[str, np.ndarray], world: World) -> Built:
        theirs = PromptEncoder(config).double()
        names = {"Z": "embedding.weight"}
        state = {}
        for name, value in tensors.items():
            block, _, rest = name.partition(".")
            state[names.get(name, f"{block}_head.{rest}")] = torch.from_numpy(value)
        state = {_spelled(k, theirs): v for k, v in state.items()}
        theirs.load_state_dict(state)
        with torch.no_grad():
            rows = theirs(torch.arange(tuner.tokens)[None])[0]
        require(rows.shape == (tuner.tokens, WIDTH), "shape of the prompt")
        return rows.numpy(), None

    hand_built(tuner, build)


def _spelled(name: str, module: torch.nn.Module) -> str:
    """`tensors_by_target` leaves out the word weight."""
    own = module.state_dict()
    return name if name in own else f"{name}.weight"


def oracle_peft_mlp() -> None:
    _check("mlp")


def oracle_peft_lstm() -> None:
    _check("lstm")
