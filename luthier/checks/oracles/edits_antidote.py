"""|W| times column norms by hand in float64, on a tuned model's q, k and v and on the factors of a LoRA; the two ends."""

from __future__ import annotations

import numpy as np
import torch

from luthier.checks import _models
from luthier.checks._compare import close, require, same
from luthier.checks.edits import World, worlds
from luthier.checks.oracles._edits import inputs, rows
from luthier.core import catalog

ATTENTION = {
    "llama": ("q_proj", "k_proj", "v_proj"), "gpt2": ("c_attn",), "bert": ("query", "key", "value"),
    "t5": (".q.", ".k.", ".v."),
}  # fmt: skip


def _cls() -> type:
    return catalog.load("edits", __name__.split("edits_")[-1])


def oracle_tuned_model() -> None:
    """Only q, k and v; the floor of the share of every row; the largest scores."""
    for world in worlds(_cls()()):
        (state,) = world.of(_cls()())
        out = world.apply(_cls()(share=0.2), [state])
        names = [n for n in state if n.endswith("weight") and any(w in n for w in ATTENTION[world.label])]
        for name in set(state) - set(names):
            same(out[name], state[name], f"{world.label}: {name}, which is neither q, k nor v")
        for name in names:
            weight, after = (rows(world, s[name].double().numpy()) for s in (state, out))
            scores = np.abs(weight) * np.sqrt((inputs(world, state, name) ** 2).sum(0))
            _row_by_row(scores, after, int(0.2 * weight.shape[1] + 1e-6), name)


def _row_by_row(scores: np.ndarray, after: np.ndarray, wanted: int, name: str) -> None:
    for score, y in zip(scores, after, strict=True):
        gone = y == 0
        require(int(gone.sum()) == wanted, f"{name}: {int(gone.sum())} zeros in a row, not {wanted}")
        require(score[gone].min() >= score[~gone].max() * (1 - 1e-5), f"{name}: a lower score went before a higher one")


def _tuned_adapter(world: World) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(
        world.model(), LoraConfig(r=10, lora_alpha=20, target_modules="all-linear", init_lora_weights=False)
    )


def oracle_adapter() -> None:
    """Factor A by what its layer is given, B by what A gives, both of the tuned model; the base alone at share 1."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    for world in [w for w in worlds(_cls()()) if w.label in ("llama", "gpt2")]:
        model = _tuned_adapter(world)
        state = {n: t.clone() for n, t in get_peft_model_state_dict(model).items()}
        seen = _norms(world, model)
        out = _cls()(share=0.3).apply([state], model, world.probe(model))
        for name, tensor in state.items():
            module = name.replace(".weight", ".default")
            scores = tensor.abs().double().numpy() * seen[module]
            _row_by_row(scores, out[name].numpy(), int(0.3 * tensor.shape[1] + 1e-6), name)
        ids = torch.arange(5, 25)[None]
        set_peft_model_state_dict(model, _cls()(share=1.0).apply([state], model, world.probe(model)))
        with torch.no_grad():
            close(model(input_ids=ids).logits, world.model()(input_ids=ids).logits, f"{world.label} at share 1")
        for name, tensor in _cls()(share=0.0).apply([state], model, world.probe(model)).items():
            same(tensor, state[name], f"{world.label}: {name} at share 0")


def _norms(world: World, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Norm of every input feature of every factor, row of data by row of data."""
    squares: dict[str, np.ndarray] = {}
    handles = []
    for name, module in model.named_modules():
        if ".lora_A." in name or ".lora_B." in name:

            def hook(m: torch.nn.Module, x: tuple[torch.Tensor, ...], y: torch.Tensor, name: str = name) -> None:
                squares[name] = squares.get(name, 0) + (x[0].double() ** 2).flatten(0, -2).sum(0).numpy()

            handles.append(module.register_forward_hook(hook))
    data = next(w for w in _models.WORLDS if w.architecture == world.label)
    for example in data.examples:
        with torch.no_grad():
            model(input_ids=data.batch([example]).ids)
    for handle in handles:
        handle.remove()
    return {n: np.sqrt(s) for n, s in squares.items()}
