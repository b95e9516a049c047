"""Parts inside attention: prefixes, and whatever else works head by head, through transformers' attention interface.

A part is given `attend` and the query, keys and values that the model made (rotated, grouped, read from a cache), and returns
what the heads give. A prefix, for example:

    out = attend(q, [P_K; k], [P_V; v])

Keys that a part puts in front are seen by every query, have no position and are no part of any cache, so rows, padding,
packing and cached steps stay as they are. While the wrapped module runs, its config names the function below as the
implementation; that function calls the one that the user chose, sdpa or eager. The model itself is never changed. Rows of a
batch may have adapters of their own (peft's `adapter_names`, "__base__" for none).

B rows, T queries, S keys, H query heads, G key and value heads, d features of a head.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.core.adapt import WHOLE_BATCH, BridgedLayer, BridgedModel, BridgedTuner, found_modules
from luthier.core.anatomy import anatomy, head_sizes, kind_of
from luthier.core.batch import positions_from_mask
from luthier.core.method import Refusal, Tuner

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, H, T, d) query, (B, G, S, d) keys and values to (B, T, H, d). Keys beyond the model's own are in front."""

ROUTE = "luthier"
BASE_ROW = "__base__"
"""peft's name for a row without an adapter."""
IMPLEMENTATIONS = ("sdpa", "eager")


class AttentionPart(nn.Module):
    """What an adapter does inside one attention module."""

    def forward(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        raise NotImplementedError


class _Routed:
    """The config of a module while parts act in it."""

    _attn_implementation = ROUTE

    def __init__(self, config: Any, parts: Sequence[Callable[..., Tensor]]):
        self.config, self.parts = config, parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


class _ByRows:
    """Every row's own part: attention is computed once for each part and each row takes its result."""

    def __init__(self, parts: nn.ModuleDict, names: Sequence[str]):
        self.parts, self.names = parts, names

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if len(self.names) != len(query):
            raise Refusal(
                f"adapter_names has {len(self.names)} names for a batch of {len(query)} rows: one a row is needed"
            )
        out: Tensor | None = None
        for name in dict.fromkeys(self.names):
            found = self.parts[name](attend, query, key, value) if name in self.parts else attend(query, key, value)
            mine = torch.tensor([n == name for n in self.names], device=found.device)[:, None, None, None]
            out = found if out is None else torch.where(mine, found, out)
        assert out is not None
        return out


class AttentionLayer(BridgedLayer):
    by_row: Sequence[str] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parts = self.active_parts()
        if parts and self.by_row is not None:
            parts = [_ByRows(self.parts, self.by_row)]
        if not parts:
            return self.base_layer(*args, **kwargs)
        config = self.base_layer.config
        self.base_layer.config = _Routed(config, parts)
        try:
            return self.base_layer(*args, **kwargs)
        finally:
            self.base_layer.config = config


def _interface(module: nn.Module) -> tuple[Any, Any]:
    """The table of attention functions that a model's file uses, and its own eager function."""
    home = vars(sys.modules[type(module).__module__])
    if "ALL_ATTENTION_FUNCTIONS" not in home or "eager_attention_forward" not in home:
        raise Refusal(f"{type(module).__name__} does not call transformers' attention interface: no part fits inside")
    return home["ALL_ATTENTION_FUNCTIONS"], home["eager_attention_forward"]


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls: the parts around the implementation that the config names."""
    chosen, parts = module.config.config._attn_implementation, module.config.parts
    if chosen not in IMPLEMENTATIONS:
        raise Refusal(
            f"parts inside attention need sdpa or eager, not '{chosen}': model.set_attn_implementation('sdpa')"
        )
    table, eager = _interface(module)
    function = table.get_interface(chosen, eager)
    T, bias = query.shape[2], kwargs.pop("position_bias", None)
    causal = kwargs.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)  # as transformers' own functions ask
    # no mask is a promise to mask what comes later; of a cache made for more, only the first T keys are filled then
    causal = causal and attention_mask is None and T > 1 and chosen == "sdpa"
    if causal:
        key, value = key[:, :, :T], value[:, :, :T]
        bias = None if bias is None else bias[..., :T]
    S, weights = key.shape[2], None

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        nonlocal weights
        front, mask = key.shape[2] - S, attention_mask
        if front and causal:
            mask = torch.ones(1, 1, T, S, dtype=torch.bool, device=query.device).tril()
        if front and mask is not None:
            mask = F.pad(mask, (front, 0), value=mask.dtype == torch.bool)  # True, or nothing added
        told = kwargs if bias is None else {**kwargs, "position_bias": F.pad(bias, (front, 0))}
        out, weights = function(module, query, key, value, mask, **told)
        return out

    for part in parts:
        attend = partial(part, attend)
    out = attend(query, key, value)
    mixed = any(isinstance(part, _ByRows) for part in parts)  # its weights would be those of its last part alone
    return out, None if weights is None or mixed else weights[..., -S:]


AttentionInterface.register(ROUTE, _attention)


class AttentionModel(BridgedModel):
    """Positions come from the mask, as with prompts: what stands in front of a row has no position of its own, so where
    the row begins must not depend on its padding."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2 and kwargs.get("position_ids") is None and self._counts:
            ids = kwargs.get("inputs_embeds") if kwargs.get("input_ids") is None else kwargs["input_ids"]
            if ids is not None:
                kwargs["position_ids"] = positions_from_mask(mask)[:, -ids.shape[1] :]
        return super().forward(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Inside, row i of a batch has the adapter `adapter_names[i]`."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        names = [n for n in names for _ in range(kwargs.get("num_beams") or 1)]
        modules = list(self.model.modules())
        layers = [m for m in modules if isinstance(m, AttentionLayer)]
        others = [m for m in modules if isinstance(m, BridgedLayer) and not isinstance(m, AttentionLayer)]
        if others or any(isinstance(m, AuxiliaryTrainingWrapper) for m in modules):
            raise Refusal(WHOLE_BATCH)
        known = {n for layer in layers for n in layer.parts} | {BASE_ROW}
        if unknown := sorted(set(names) - known):
            raise Refusal(f"adapter_names: no adapter '{unknown[0]}'; there are {', '.join(sorted(known))}")
        for layer in layers:
            layer.by_row = names
        try:
            yield
        finally:
            for layer in layers:
                layer.by_row = None

    @property
    def _counts(self) -> bool:
        takes = "position_ids" in inspect.signature(self.model.forward).parameters
        return takes and kind_of(self.model) == "decoder"


EVERY_ATTENTION = ("heads", "cross_attention")


def attention_modules(method: Tuner, model: nn.Module, roles: tuple[str, ...] = EVERY_ATTENTION) -> list[str]:
    """Names of the modules of `roles` in which parts can act. Raises Refusal."""
    names = found_modules(method, anatomy(model), roles)
    first = model.get_submodule(names[0])
    _interface(first.get_base_layer() if isinstance(first, BridgedLayer) else first)
    return names


class AttentionTuner(BridgedTuner):
    """Base of methods that act inside attention.

    `build(shape, kind)` returns the part; `shape` is (H, G, d), `kind` "encoder", "decoder" or "cross".
    """

    layer_class: ClassVar[type] = AttentionLayer
    model_class: ClassVar[type | None] = AttentionModel
    targets: ClassVar[tuple[str, ...]] = EVERY_ATTENTION

    def build(self, shape: tuple[int, int, int], kind: str) -> AttentionPart:
        raise NotImplementedError

    def target_modules(self, model: nn.Module) -> list[str]:
        return attention_modules(self, model, self.targets)

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        return self.build(head_sizes(model), kind_at(model, name))


def kind_at(model: nn.Module, name: str) -> str:
    """ "encoder" or "decoder" for attention of a stack to itself, "cross" for attention to the encoder's states."""
    body = anatomy(model)
    own = (s for s in ("encoder", "decoder") if name in body.modules(("heads",), s))
    return next(own, "cross")
