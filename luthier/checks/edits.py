"""What every edit keeps: checkpoints in, one of the same make out, tensor by tensor as in one piece, and what it claims."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.checks import _models
from luthier.checks._battery import on, when
from luthier.checks._compare import close, finite, require, same
from luthier.checks._models import model_of
from luthier.core.loop import Collator
from luthier.core.method import Edit, LuthierError
from luthier.core.probe import Probe, probe_of
from luthier.core.shards import Shards, write_like

State = dict[str, Tensor]


@dataclass(frozen=True)
class World:
    """A base and checkpoints that were tuned on it."""

    label: str

    def model(self) -> nn.Module:
        return model_of(self.label)

    def states(self, n: int = 2) -> list[State]:
        """(tuned, ..., tuned, base)."""
        base = {n: t.detach().clone() for n, t in self.model().state_dict().items()}
        generator = torch.Generator().manual_seed(5)
        tuned = [
            {
                k: t + 0.05 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.clone()
                for k, t in base.items()
            }
            for _ in range(n - 1)
        ]
        return [*tuned, base]

    def of(self, method: Edit) -> list[State]:
        """As many as the edit takes, three where it takes any number."""
        least, most = method.inputs
        return self.states(max(2, least) if most is not None else max(3, least))[: most or None]

    def given(self, method: Edit, first: Mapping[str, Tensor]) -> tuple[nn.Module, Probe | None]:
        """The architecture, with the numbers of the first checkpoint, and data where they are asked for."""
        model = self.model()
        model.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in first.items()})
        return model, self.probe(model) if "data" in method.needs else None

    def probe(self, model: nn.Module) -> Probe:
        data = next(w for w in _models.WORLDS if w.architecture == self.label)
        return probe_of(model, data.objective, data.examples, Collator(_models.PAD, _models.PAD))

    def apply(self, method: Edit, states: Sequence[Mapping[str, Tensor]]) -> State:
        return method.apply(states, *self.given(method, states[0]))


def worlds(method: Edit) -> list[World]:
    return [World(name) for name in ("llama", "gpt2", "bert", "t5")]


def _copy(state: Mapping[str, Tensor]) -> State:
    return {n: t.clone() for n, t in state.items()}


def check_inputs_untouched(method: Edit, world: World) -> None:
    """The inputs are as they were, and the output shares no memory with them."""
    states = world.of(method)
    before = [_copy(s) for s in states]
    out = world.apply(method, states)
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
    states = world.of(method)
    out = world.apply(method, states)
    require(list(out) == list(states[0]), "names or their order differ from the first input's")
    for name, tensor in out.items():
        require(
            (tensor.shape, tensor.dtype) == (states[0][name].shape, states[0][name].dtype), f"{name} is of another make"
        )
        require(not tensor.requires_grad, f"{name} carries a graph")
        finite(tensor, name)
    world.model().load_state_dict(out)


@when(lambda m: "agree" in m.capabilities)
def check_agree(method: Edit, world: World) -> None:
    """Where all inputs are equal there is nothing to do: the same comes out."""
    states = world.of(method)
    out = world.apply(method, [_copy(states[-1]) for _ in states])
    for name, tensor in out.items():
        close(tensor, states[-1][name], f"{name} of equal inputs")


@when(lambda m: "copies" in m.capabilities)
def check_copies(method: Edit, world: World) -> None:
    """Every number is one of the inputs' at the same place."""
    states = world.of(method)
    for name, tensor in world.apply(method, states).items():
        known = torch.stack([s[name] == tensor for s in states]).any(0)
        require(bool(known.all()), f"{name} holds numbers that no input has")


@when(lambda m: "zeros" in m.capabilities)
def check_zeros(method: Edit, world: World) -> None:
    """A number is zero, or the first input's to the last bit; something became zero, and not everything did."""
    (state,) = world.of(method)
    gone = total = 0
    for name, tensor in world.apply(method, [state]).items():
        require(bool(((tensor == 0) | (tensor == state[name])).all()), f"{name} holds numbers that are new")
        gone, total = gone + int(((tensor == 0) & (state[name] != 0)).sum()), total + tensor.numel()
    require(0 < gone < total, f"{gone} of {total} numbers became zero")


def check_does_something(method: Edit, world: World) -> None:
    """Inputs that differ give something that is not the first."""
    states = world.of(method)
    out = world.apply(method, states)
    require(any(not torch.equal(t, states[0][n]) for n, t in out.items()), "the first input came back unchanged")


def check_repeatable(method: Edit, world: World) -> None:
    """Twice the same to the last bit, also when the global random state is another."""
    first = world.apply(method, world.of(method))
    torch.manual_seed(99)
    second = world.apply(method, world.of(method))
    for name, tensor in first.items():
        same(second[name], tensor, f"{name} the second time")


def check_half_precision(method: Edit, world: World) -> None:
    """bfloat16 checkpoints give what the same numbers in float32 give, rounded."""
    half = [{n: t.bfloat16() if t.is_floating_point() else t for n, t in s.items()} for s in world.of(method)]
    full = [{n: t.float() if t.is_floating_point() else t for n, t in s.items()} for s in half]
    wanted, out = world.apply(method, full), world.apply(method, half)
    for name, tensor in out.items():
        require(tensor.dtype == half[0][name].dtype, f"{name} is {tensor.dtype}")
        close(tensor, wanted[name], f"{name} in bfloat16")


def check_any_order(method: Edit, world: World) -> None:
    """A tensor does not depend on which others were made before it."""
    states = world.of(method)
    wanted, plan = world.apply(method, states), method.plan(states, *world.given(method, states[0]))
    for name in reversed(list(states[0])):
        same(
            method.one(name, [s[name] for s in states], plan), wanted[name], f"{name}, made from the last to the first"
        )


def check_streamed(method: Edit, world: World) -> None:
    """From files to files, tensor by tensor or in pieces of any size, it is to the last bit what it is in memory."""
    states = world.of(method)
    with tempfile.TemporaryDirectory() as folder:
        files = [_written(state, Path(folder) / str(i)) for i, state in enumerate(states)]
        for file in files:
            file.piece = 37
        plan = method.plan(files, *world.given(method, states[0]))
        (Path(folder) / "out").mkdir()
        write_like(files[0], Path(folder) / "out", method.stream(files, plan))
        again = load_file(Path(folder) / "out" / "model.safetensors")
    files_order = world.apply(method, [{n: s[n] for n in files[0]} for s in states])
    for name, tensor in files_order.items():
        same(again[name], tensor, f"{name} from files")


def _written(state: State, folder: Path) -> Shards:
    folder.mkdir()
    save_file({n: t.clone() for n, t in state.items()}, folder / "model.safetensors")
    return Shards(folder)


@on(lambda w: w.label == "llama")
def check_not_a_number(method: Edit, world: World) -> None:
    """NaN in any checkpoint is refused by the name of its tensor, also where the number itself would not be used."""
    states, name = world.of(method), "model.layers.1.mlp.down_proj.weight"
    plan = method.plan(states, *world.given(method, states[0]))
    for i in range(len(states)):
        tensors = [s[name].clone() for s in states]
        tensors[i][3, 5] = torch.nan
        _refused(partial(method.one, name, tensors, plan), name)


@on(lambda w: w.label == "llama")
def check_number_of_checkpoints(method: Edit, world: World) -> None:
    """Fewer or more than it takes are refused in a line that says how many."""
    least, most = method.inputs
    for n in {least - 1, *([most + 1] if most is not None else [])}:
        _refused(partial(method.apply, world.states(4)[:n]), "checkpoint")


def _refused(act: Any, word: str) -> None:
    try:
        act()
    except LuthierError as error:
        require(word in str(error) and "\n" not in str(error), f"refused in other words: {error}")
        return
    require(False, "not refused")


@when(lambda m: "adapter" in m.capabilities)
@on(lambda w: w.label in ("llama", "gpt2"))
def check_adapter(method: Edit, world: World) -> None:
    """Of an adapter it gives an adapter: the same names, and the base of the model that carries it stays as it is."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    model = get_peft_model(world.model(), LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = _copy(get_peft_model_state_dict(model))
    out = method.apply([state], model, world.probe(model) if "data" in method.needs else None)
    require(list(out) == list(state), "names differ from the adapter's")
    require(any(not torch.equal(t, state[n]) for n, t in out.items()), "the adapter came back unchanged")
    for name, parameter in model.named_parameters():
        same(parameter.detach(), before[name], f"{name} of the model")
