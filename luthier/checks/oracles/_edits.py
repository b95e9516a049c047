"""What oracles of edits share: checkpoints as float64 arrays, comparison, and matrices found by their names alone."""

from __future__ import annotations

import re

import numpy as np
import torch

from luthier.checks._compare import close
from luthier.checks.edits import State, World

Arrays = dict[str, np.ndarray]


def arrays(state: State) -> Arrays:
    return {n: t.double().numpy() for n, t in state.items()}


def agree(out: State, wanted: Arrays, what: str) -> None:
    """Tensor by tensor."""
    for name, tensor in out.items():
        close(tensor, torch.from_numpy(np.asarray(wanted[name], dtype=np.float64)), f"{what}: {name}")


MATRICES = {
    "llama": r"layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight",
    "gpt2": r"h\.\d+\.(attn|mlp)\.c_\w+\.weight",
    "bert": r"layer\.\d+\.\S*(query|key|value|dense)\.weight",
    "t5": r"block\.\d+\.layer\.\d+\.\S*\.(q|k|v|o|wi|wo)\.weight",
}
"""Names of the layers' matrices."""


def matrices(world: World, state: State) -> list[str]:
    return [n for n in state if re.search(MATRICES[world.label], n)]


def rows(world: World, array: np.ndarray) -> np.ndarray:
    """A matrix with one row an output feature: GPT-2 stores it the other way round."""
    return array.T if world.label == "gpt2" else array


def inputs(world: World, state: State, name: str) -> np.ndarray:
    """Everything that the matrix `name` is given on the world's rows, (tokens, features), one row at a time, no padding."""
    model = world.model().double()
    model.load_state_dict({n: t.double() for n, t in state.items()})
    seen: list[np.ndarray] = []
    module = model.get_submodule(name.removesuffix(".weight"))
    module.register_forward_hook(lambda m, x, y: seen.append(x[0].detach().reshape(-1, x[0].shape[-1]).numpy()))
    for example in _rows(world):
        with torch.no_grad():
            model(**example)
    return np.concatenate(seen)


def _rows(world: World) -> list[dict[str, torch.Tensor]]:
    from luthier.checks import _models

    data = next(w for w in _models.WORLDS if w.architecture == world.label)
    out = []
    for example in data.examples:
        batch = data.batch([example])
        told = {"input_ids": batch.ids}
        if batch.decoder_ids is not None:
            told["decoder_input_ids"] = batch.decoder_ids
        out.append(told)
    return out
