"""What every edit keeps: state dictionaries in, one of the same make out, and nothing moved where all inputs agree."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.checks._compare import close, finite, require, same
from luthier.checks._models import model_of
from luthier.core.method import Edit

State = dict[str, Tensor]


@dataclass(frozen=True)
class World:
    """Two checkpoints of one architecture: one, and the same after some training."""

    label: str

    def model(self) -> nn.Module:
        return model_of(self.label)

    def states(self) -> list[State]:
        """(tuned, base)."""
        base = {n: t.detach().clone() for n, t in self.model().state_dict().items()}
        generator = torch.Generator().manual_seed(5)
        tuned = {
            n: t + 0.05 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.clone()
            for n, t in base.items()
        }
        return [tuned, base]


def worlds(method: Edit) -> list[World]:
    return [World(name) for name in ("llama", "gpt2", "bert", "t5")]


def _copy(state: State) -> State:
    return {n: t.clone() for n, t in state.items()}


def check_inputs_untouched(method: Edit, world: World) -> None:
    """The inputs are as they were, and the output shares no memory with them."""
    states = world.states()
    before = [_copy(s) for s in states]
    out = method.apply(states, world.model())
    pointers = {t.untyped_storage().data_ptr() for s in states for t in s.values()}
    for state, old in zip(states, before):
        for name, tensor in state.items():
            same(tensor, old[name], f"input {name}")
    require(
        all(t.untyped_storage().data_ptr() not in pointers for t in out.values()),
        "the output shares memory with an input",
    )


def check_make(method: Edit, world: World) -> None:
    """Names, shapes and dtypes are those of the first input, values are finite, and the model takes them."""
    states = world.states()
    out = method.apply(states, world.model())
    require(list(out) == list(states[0]), "names or their order differ from the first input's")
    for name, tensor in out.items():
        require(
            (tensor.shape, tensor.dtype) == (states[0][name].shape, states[0][name].dtype), f"{name} is of another make"
        )
        require(not tensor.requires_grad, f"{name} carries a graph")
        finite(tensor, name)
    world.model().load_state_dict(out)


def check_neutral(method: Edit, world: World) -> None:
    """Where all inputs are equal there is nothing to do: the same comes out."""
    base = world.states()[1]
    out = method.apply([_copy(base), _copy(base)], world.model())
    for name, tensor in out.items():
        close(tensor, base[name], f"{name} of equal inputs")


def check_does_something(method: Edit, world: World) -> None:
    """Two different inputs give something that is not the first."""
    states = world.states()
    out = method.apply(states, world.model())
    require(any(not torch.equal(t, states[0][n]) for n, t in out.items()), "the first input came back unchanged")


def check_repeatable(method: Edit, world: World) -> None:
    """Twice the same to the last bit, also when the global random state is another."""
    first = method.apply(world.states(), world.model())
    torch.manual_seed(99)
    second = method.apply(world.states(), world.model())
    for name, tensor in first.items():
        same(second[name], tensor, f"{name} the second time")


def check_half_precision(method: Edit, world: World) -> None:
    """bfloat16 checkpoints give a bfloat16 checkpoint near that of float32."""
    states = world.states()
    half = [{n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in s.items()} for s in states]
    wanted, out = method.apply(states, world.model()), method.apply(half, world.model())
    for name, tensor in out.items():
        require(tensor.dtype == half[0][name].dtype, f"{name} is {tensor.dtype}")
        close(tensor, wanted[name], f"{name} in bfloat16")


def check_saved(method: Edit, world: World) -> None:
    """What comes out can be saved and read back to the last bit: no tensor shares or skips memory."""
    out = method.apply(world.states(), world.model())
    with tempfile.TemporaryDirectory() as folder:
        save_file(out, Path(folder) / "model.safetensors")
        again = load_file(Path(folder) / "model.safetensors")
    for name, tensor in out.items():
        same(again[name], tensor, f"{name} after saving")
