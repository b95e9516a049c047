"""Parts inside attention: prefixes, and whatever else works head by head, through transformers' attention interface.

A part is given `attend` and the query, keys and values that the model made (rotated, grouped, read from a cache), and returns
what the heads give. A prefix, for example:

    out = attend(q, [P_K; k], [P_V; v])

Keys that a part puts in front are seen by every query, have no position and are no part of any cache, so rows, padding,
packing and cached steps stay as they are. While the wrapped module runs, its config names the function below as the
implementation; that function calls the one that the user chose, sdpa or eager. The model itself is never changed.

B rows, T queries, S keys, H query heads, G key and value heads, d features of a head.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.core.adapt import BridgedLayer, BridgedModel, BridgedTuner, found_modules
from luthier.core.anatomy import anatomy, head_sizes, kind_of
from luthier.core.batch import positions_from_mask
from luthier.core.method import Refusal

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, H, T, d) query, (B, G, S, d) keys and values to (B, T, H, d). Keys beyond the model's own are in front."""

ROUTE = "luthier"
IMPLEMENTATIONS = ("sdpa", "eager")


class AttentionPart(nn.Module):
    """What an adapter does inside one attention module."""

    def forward(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        raise NotImplementedError

    def folded(self) -> AttentionPart:
        """The part that serving needs."""
        return self


class _Routed:
    """The config of a module while parts act in it."""

    _attn_implementation = ROUTE

    def __init__(self, config: Any, parts: list[nn.Module]):
        self.config, self.parts = config, parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


class AttentionLayer(BridgedLayer):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parts = self.active_parts()
        if not parts:
            return self.base_layer(*args, **kwargs)
        config = self.base_layer.config
        self.base_layer.config = _Routed(config, parts)
        try:
            return self.base_layer(*args, **kwargs)
        finally:
            self.base_layer.config = config

    def fold(self, name: str) -> None:
        part: Any = self.parts[name]
        self.parts[name] = part.folded()


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
    return out, None if weights is None else weights[..., -S:]


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

    @property
    def _counts(self) -> bool:
        takes = "position_ids" in inspect.signature(self.model.forward).parameters
        return takes and kind_of(self.model) == "decoder"


class AttentionTuner(BridgedTuner):
    """Base of methods that act inside attention.

    `build(shape, kind)` returns the part; `shape` is (H, G, d), `kind` "encoder", "decoder" or "cross".
    """

    layer_class: ClassVar[type] = AttentionLayer
    model_class: ClassVar[type | None] = AttentionModel
    targets: ClassVar[tuple[str, ...]] = ("heads", "cross_attention")

    def build(self, shape: tuple[int, int, int], kind: str) -> AttentionPart:
        raise NotImplementedError

    def target_modules(self, model: nn.Module) -> list[str]:
        names = found_modules(self, anatomy(model), self.targets)
        first = model.get_submodule(names[0])
        _interface(first.get_base_layer() if isinstance(first, BridgedLayer) else first)
        return names

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        return self.build(head_sizes(model), kind_at(model, name))


def kind_at(model: nn.Module, name: str) -> str:
    """ "encoder" or "decoder" for attention of a stack to itself, "cross" for attention to the encoder's states."""
    body = anatomy(model)
    own = (s for s in ("encoder", "decoder") if name in body.modules(("heads",), s))
    return next(own, "cross")
