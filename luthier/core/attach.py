"""An adapter held beside a model whose modules, names and tensors stay its own: the model is tuned behind it.

peft puts an adapter's layers around modules of the base, which moves their names. Here each wrapped module is put back
in its place and only its `forward` leads through the layer: what selects, saves or counts the model's tensors by name
meets the plain model, and taking the adapter off leaves it exactly. The layers are the submodule `attached`, so that
checkpoints hold the adapter's tensors too; whether they move is the caller's choice.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from luthier.core.adapt import PromptLayer, PromptPart
from luthier.core.anatomy import base_transformer
from luthier.core.method import LuthierError

AT = "attached"


class _Own:
    """A module as its class runs it, whatever its `forward` leads through. No nn.Module: it registers nothing."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    @property
    def forward(self) -> Any:
        return types.MethodType(type(self._module).forward, self._module)

    def __getattr__(self, name: str) -> Any:
        if name == "_module":  # being copied: there is nothing yet
            raise AttributeError(name)
        return getattr(self._module, name)


class Attached:
    """The adapter of `wrapped`, a PeftModel, attached to its base `model`. Raises LuthierError for what cannot be."""

    def __init__(self, wrapped: Any):
        self.wrapped, self.model = wrapped, base_transformer(wrapped)
        found = [(n, m) for n, m in self.model.named_modules() if isinstance(m, BaseTunerLayer)]
        if not found or any("modules_to_save" in n for n, _ in self.model.named_modules()):
            raise LuthierError(
                "only an adapter without trained copies of the model's own modules can be held beside a model"
            )
        self._layers: dict[str, Any] = dict(found)
        self._attach()

    def _attach(self) -> None:
        for name, layer in self._layers.items():
            own = layer.base_layer
            self._put(name, own)
            del layer._modules["base_layer"]
            layer.base_layer = _Own(own)
        self.model.add_module(AT, nn.ModuleList(self._layers.values()))
        self.on()

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        self.model.get_submodule(parent)._modules[child] = module

    # on and off ---------------------------------------------------------------------------------------

    def on(self) -> None:
        for layer in self._layers.values():
            layer.base_layer._module.forward = layer.forward

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """The plain model, while it lasts."""
        self._plain()
        try:
            yield self.model
        finally:
            self.on()

    def _plain(self) -> None:
        for layer in self._layers.values():
            layer.base_layer._module.__dict__.pop("forward", None)

    def remove(self) -> nn.Module:
        """The plain model for good."""
        self._plain()
        self.model._modules.pop(AT, None)
        return self.model

    @contextmanager
    def without(self) -> Iterator[nn.Module]:
        """The plain model with nothing beside it, while it lasts: as it is saved."""
        self.remove()
        try:
            yield self.model
        finally:
            self.model.add_module(AT, nn.ModuleList(self._layers.values()))
            self.on()

    @contextmanager
    def as_peft(self) -> Iterator[Any]:
        """The PeftModel that it was, with the tensors of now, while it lasts: how the adapter is saved."""
        self.remove()
        for name, layer in self._layers.items():
            own = layer.base_layer._module
            del layer.__dict__["base_layer"]
            layer.base_layer = own
            self._put(name, layer)
        try:
            yield self.wrapped
        finally:
            self._attach()

    # prompts ------------------------------------------------------------------------------------------

    @property
    def prompts(self) -> dict[str, PromptPart]:
        """Prompt parts by adapter name; empty for adapters of other kinds."""
        layers = (layer for layer in self._layers.values() if isinstance(layer, PromptLayer))
        return {n: p for layer in layers for n, p in layer.parts.items() if isinstance(p, PromptPart)}

    @contextmanager
    def chosen(self, names: Sequence[str]) -> Iterator[None]:
        """While it lasts, row b of every batch has the prompt called `names[b]`; a single name serves all rows.

        Raises LuthierError for prompts that also correct embeddings or differ in length.
        """
        layer = next(x for x in self._layers.values() if isinstance(x, PromptLayer) and self._holds(x))
        table = _Table(self.prompts, names)
        layer.chosen = [table]
        try:
            yield
        finally:
            layer.chosen = None

    def _holds(self, layer: PromptLayer) -> bool:
        return any(isinstance(p, PromptPart) for p in layer.parts.values())


class _Table(PromptPart):
    """Prompts of one length, a row of the batch each its own."""

    def __init__(self, parts: Mapping[str, PromptPart], names: Sequence[str]):
        super().__init__()
        lengths = {part.tokens for part in parts.values()}
        if len(lengths) > 1 or any(part.correction() is not None for part in parts.values()):
            raise LuthierError("prompts of one batch must have the same length, and correct no embeddings")
        unknown = sorted(set(names) - set(parts))
        if unknown:
            raise LuthierError(f"there is no prompt '{unknown[0]}': one of {', '.join(parts)}")
        self._parts, self._names = dict(parts), list(names)  # a plain dict: they are registered where they belong

    @property
    def tokens(self) -> int:
        return next(iter(self._parts.values())).tokens

    def prompt(self) -> Tensor:
        """(m, D), or (B, m, D)."""
        if len(self._names) == 1:
            return self._parts[self._names[0]].prompt()
        used = list(dict.fromkeys(self._names))
        rows = torch.stack([self._parts[n].prompt() for n in used])  # (K, m, D)
        at = torch.tensor([used.index(n) for n in self._names], device=rows.device)
        return rows[at]


def length_ratio(model: nn.Module, part: PromptPart) -> float:
    """Mean length of a prompt's vectors over that of the vocabulary's."""
    base: Any = base_transformer(model)
    table = base.get_input_embeddings().weight.detach().float()
    rows = part.prompt().detach().float()
    return float(rows.norm(dim=1).mean() / table.norm(dim=1).mean()) if len(rows) else 0.0
