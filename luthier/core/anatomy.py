"""Where the parts of a transformer are: one registry of architectures, read by every tuner.

`anatomy(model)` answers in roles, never in names:

    q k v o            attention matrices of a layer         up gate down   feed-forward matrices (no gate: two matrices)
    attention          the attention block                   feed_forward   the feed-forward block
    heads              what computes attention head by head  cross_attention  the same, over the encoder's states
    norm               normalisation layers of a block       embedding      token embedding table
    head               output embeddings or task head        final_norm     norm after the last block

Fused projections (GPT-2 `c_attn`, Phi-3 `qkv_proj`) are several roles in one tensor: such a matrix carries the
blocks of rows or columns that belong to it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.core.method import LuthierError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Block = tuple[int, int, int]
"""(dimension, start, stop) of a tensor."""


@dataclass(frozen=True)
class Matrix:
    """One role's weight: the module that holds it and, where the tensor is shared by roles, its blocks."""

    role: str
    module: str
    blocks: tuple[Block, ...] = ()


Inside = tuple[str, int, str]
"""Of a block that adds its residual itself: the matrix where the sublayer ends (its name in the block), and which
argument, by place and by name, is the sublayer's input."""


@dataclass(frozen=True)
class Layer:
    """One transformer block."""

    stack: str
    index: int
    name: str
    attention: str
    feed_forward: str
    matrices: tuple[Matrix, ...]
    norms: tuple[str, ...]

    def matrix(self, role: str) -> Matrix | None:
        return next((m for m in self.matrices if m.role == role), None)


@dataclass
class Anatomy:
    """Names of a model's parts. `layers` in order from the input, encoder first.

    inside  block name -> where its sublayer begins and ends, for blocks that add their residual (post-norm models)
    """

    model_type: str
    kind: str
    backbone: str
    layers: list[Layer]
    embedding: str
    head: str | None
    final_norms: list[str]
    width: int
    inside: dict[str, Inside] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)

    def modules(self, roles: list[str] | tuple[str, ...], stack: str | None = None) -> list[str]:
        """Module names of `roles`, in layer order, without repeats (fused matrices share a module)."""
        found: list[str] = []
        for layer in self.layers:
            if stack is not None and layer.stack != stack:
                continue
            for role in roles:
                names = _names(layer, role)
                found += [n for n in names if n not in found]
        return found


ROLES = ("q", "k", "v", "o", "up", "gate", "down", "attention", "feed_forward", "norm", "heads", "cross_attention")


def _names(layer: Layer, role: str) -> list[str]:
    if role == "attention":
        return [layer.attention]
    if role == "feed_forward":
        return [layer.feed_forward]
    if role == "norm":
        return list(layer.norms)
    if role in ("heads", "cross_attention"):
        query = layer.matrix("q" if role == "heads" else "cross_q")
        return [query.module.rpartition(".")[0]] if query else []
    if role not in ROLES and not role.startswith("cross_"):
        near = difflib.get_close_matches(role, ROLES, 1)
        raise LuthierError(f"unknown role '{role}'" + (f": did you mean '{near[0]}'?" if near else f": one of {ROLES}"))
    matrix = layer.matrix(role)
    return [matrix.module] if matrix else []


# ------------------------------------------------------------------------------------------- the registry

Rows = Callable[[Any], tuple[Block, ...]]


@dataclass(frozen=True)
class Layout:
    """One architecture family: names inside a block, relative to it.

    matrices maps a role to a module name, or to (module name, rows) where `rows(config)` gives the blocks.
    body is the module inside the backbone that the model with a head really calls ("" = the backbone itself).
    stacks maps a stack name to the path of its ModuleList inside the backbone ("" = decoder only models).
    inside is, for blocks that add their residual themselves, where the sublayer ends and which argument it reads.
    """

    stacks: dict[str, str]
    attention: str
    feed_forward: str
    matrices: dict[str, str | tuple[str, Rows]]
    norms: tuple[str, ...]
    final_norms: tuple[str, ...] = ()
    kind: str = "decoder"
    embedding: str = "embed_tokens"
    body: str = ""
    inside: dict[str, Inside] = field(default_factory=dict)
    per_stack: dict[str, Layout] = field(default_factory=dict)


def _heads(config: Any) -> tuple[int, int, int]:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size, size


def _third(dim: int, index: int, config: Any) -> tuple[Block, ...]:
    d = config.hidden_size
    return ((dim, index * d, (index + 1) * d),)


def _grouped(role: str, config: Any) -> tuple[Block, ...]:
    q, kv, _ = _heads(config)
    start, stop = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}[role]
    return ((0, start, stop),)


def _interleaved(index: int, config: Any) -> tuple[Block, ...]:
    """GPT-NeoX: rows are [head][q, k, v][head size]."""
    size = config.hidden_size // config.num_attention_heads
    return tuple((0, (3 * h + index) * size, (3 * h + index + 1) * size) for h in range(config.num_attention_heads))


def _halves(index: int, config: Any) -> tuple[Block, ...]:
    n = config.intermediate_size
    return ((0, index * n, (index + 1) * n),)


_LLAMA = Layout(
    stacks={"decoder": "layers"},
    attention="self_attn",
    feed_forward="mlp",
    matrices={
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "up": "mlp.up_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj",
    },
    norms=("input_layernorm", "post_attention_layernorm"),
    final_norms=("norm",),
)  # fmt: skip
_GPT2 = Layout(
    stacks={"decoder": "h"},
    attention="attn",
    feed_forward="mlp",
    matrices={
        "q": ("attn.c_attn", partial(_third, 1, 0)), "k": ("attn.c_attn", partial(_third, 1, 1)),
        "v": ("attn.c_attn", partial(_third, 1, 2)), "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj",
    },
    norms=("ln_1", "ln_2"),
    final_norms=("ln_f",),
    embedding="wte",
)  # fmt: skip
_BERT = Layout(
    stacks={"encoder": "encoder.layer"},
    attention="attention",
    feed_forward="output",
    matrices={
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense",
    },
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    kind="encoder",
    embedding="embeddings.word_embeddings",
    inside={"attention": ("output.dense", 0, "hidden_states"), "output": ("dense", 1, "input_tensor")},
)  # fmt: skip
_T5_ENCODER = Layout(
    stacks={"encoder": "encoder.block"},
    attention="layer.0.SelfAttention",
    feed_forward="layer.1.DenseReluDense",
    matrices={
        "q": "layer.0.SelfAttention.q", "k": "layer.0.SelfAttention.k", "v": "layer.0.SelfAttention.v",
        "o": "layer.0.SelfAttention.o", "up": "layer.1.DenseReluDense.wi", "down": "layer.1.DenseReluDense.wo",
    },
    norms=("layer.0.layer_norm", "layer.1.layer_norm"),
    final_norms=("encoder.final_layer_norm",),
    kind="encoder-decoder",
    embedding="shared",
)  # fmt: skip
_T5_DECODER = Layout(
    stacks={"decoder": "decoder.block"},
    attention="layer.0.SelfAttention",
    feed_forward="layer.2.DenseReluDense",
    matrices={
        "q": "layer.0.SelfAttention.q", "k": "layer.0.SelfAttention.k", "v": "layer.0.SelfAttention.v",
        "o": "layer.0.SelfAttention.o", "up": "layer.2.DenseReluDense.wi", "down": "layer.2.DenseReluDense.wo",
        "cross_q": "layer.1.EncDecAttention.q", "cross_k": "layer.1.EncDecAttention.k",
        "cross_v": "layer.1.EncDecAttention.v", "cross_o": "layer.1.EncDecAttention.o",
    },
    norms=("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm"),
    final_norms=("decoder.final_layer_norm",),
    kind="encoder-decoder",
)  # fmt: skip


def _with(layout: Layout, **changes: Any) -> Layout:
    from dataclasses import replace

    return replace(layout, **changes)


def _gated_t5(layout: Layout) -> Layout:
    block = layout.feed_forward
    return _with(layout, matrices={**layout.matrices, "up": f"{block}.wi_1", "gate": f"{block}.wi_0"})


LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "olmo", "stablelm", "granite", "cohere"), _LLAMA
    ),
    "gemma2": _with(
        _LLAMA,
        norms=(
            "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
        ),
    ),
    "olmo2": _with(_LLAMA, norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    "phi3": _with(
        _LLAMA,
        matrices={
            **{r: ("self_attn.qkv_proj", partial(_grouped, r)) for r in ("q", "k", "v")}, "o": "self_attn.o_proj",
            "gate": ("mlp.gate_up_proj", partial(_halves, 0)), "up": ("mlp.gate_up_proj", partial(_halves, 1)),
            "down": "mlp.down_proj",
        },
    ),
    "opt": Layout(
        stacks={"decoder": "decoder.layers"},
        attention="self_attn",
        feed_forward="fc2",
        matrices={
            "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj",
            "up": "fc1", "down": "fc2",
        },
        norms=("self_attn_layer_norm", "final_layer_norm"),
        final_norms=("decoder.final_layer_norm",),
        body="decoder",
    ),
    "gpt2": _GPT2,
    "gpt_neox": Layout(
        stacks={"decoder": "layers"},
        attention="attention",
        feed_forward="mlp",
        matrices={
            **{r: ("attention.query_key_value", partial(_interleaved, i)) for i, r in enumerate("qkv")},
            "o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h",
        },
        norms=("input_layernorm", "post_attention_layernorm"),
        final_norms=("final_layer_norm",),
        embedding="embed_in",
    ),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    "distilbert": Layout(
        stacks={"encoder": "transformer.layer"},
        attention="attention",
        feed_forward="ffn",
        matrices={
            "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin", "o": "attention.out_lin",
            "up": "ffn.lin1", "down": "ffn.lin2",
        },
        norms=("sa_layer_norm", "output_layer_norm"),
        kind="encoder",
    ),
    "t5": _with(_T5_ENCODER, per_stack={"decoder": _T5_DECODER}),
    "t5-gated": _with(_gated_t5(_T5_ENCODER), per_stack={"decoder": _gated_t5(_T5_DECODER)}),
}  # fmt: skip


def register_layout(model_type: str, layout: Layout) -> None:
    """Teach luthier another architecture (from a plug-in). Raises LuthierError if the name is taken."""
    if model_type in LAYOUTS:
        raise LuthierError(f"layout '{model_type}' is already registered")
    LAYOUTS[model_type] = layout


# ------------------------------------------------------------------------------------------------ reading


def base_transformer(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PeftModel or accelerate wrapper, or `model` itself."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif hasattr(inner, "module") and isinstance(inner.module, nn.Module) and not hasattr(inner, "config_class"):
            inner = inner.module
        else:
            return inner


def kind_of(model: nn.Module) -> str:
    """ "decoder", "encoder" or "encoder-decoder"."""
    config = base_transformer(model).config
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    layout = LAYOUTS.get(config.model_type)
    if layout is not None:
        return layout.kind
    names = " ".join(getattr(config, "architectures", None) or [type(base_transformer(model)).__name__])
    return "decoder" if "CausalLM" in names or "LMHead" in names else "encoder"


def anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of `model`. Raises LuthierError naming the architecture if the registry does not hold it."""
    inner = base_transformer(model)
    config: Any = inner.config
    key = config.model_type
    if key in ("t5", "mt5", "umt5"):
        key = "t5-gated" if getattr(config, "is_gated_act", False) else "t5"
    layout = LAYOUTS.get(key)
    if layout is None:
        near = difflib.get_close_matches(key, LAYOUTS, 1)
        hint = f" (nearest: '{near[0]}')" if near else ""
        raise LuthierError(
            f"architecture '{key}' is not in luthier's registry{hint}: add it with luthier.core.anatomy.register_layout"
        )
    prefix = inner.base_model_prefix if getattr(inner, inner.base_model_prefix, None) is not None else ""
    at = f"{prefix}." if prefix else ""
    # names as in the base: what tuners wrapped stays reachable under them
    names = {n.replace(".base_layer", "") for n, _ in inner.named_modules(remove_duplicate=False)}
    layers: list[Layer] = []
    final = list(layout.final_norms)
    for one in (layout, *layout.per_stack.values()):
        final += [n for n in one.final_norms if n not in final]
        for stack, path in one.stacks.items():
            layers += _layers(inner, config, one, stack, at + path, names)
    return Anatomy(
        model_type=key,
        kind=layout.kind,
        backbone=".".join(p for p in (prefix, layout.body) if p) if prefix else "",
        layers=layers,
        embedding=_name_of(inner, inner.get_input_embeddings()) or at + layout.embedding,
        head=_head_name(inner),
        final_norms=[at + n for n in final if at + n in names],
        width=config.hidden_size,
        inside={f"{layer.name}.{block}": how for layer in layers for block, how in layout.inside.items()},
    )


@dataclass(frozen=True)
class Weight:
    """The weight of a module by rows, one a feature of its output.

    transposed  stored as (inputs, outputs);  rows  (start, stop) of those meant, where a fused tensor holds others too
    """

    module: str
    transposed: bool = False
    rows: tuple[tuple[int, int], ...] = ()


def weights(model: nn.Module, roles: Collection[str] | None = None) -> dict[str, Weight]:
    """The layers' matrices of `roles` (all of them: None) by parameter name; cross-attention's under the plain roles too."""
    found: dict[str, list[Matrix]] = {}
    for layer in anatomy(model).layers:
        for matrix in layer.matrices:
            if roles is None or matrix.role in roles or matrix.role.removeprefix("cross_") in roles:
                found.setdefault(matrix.module, []).append(matrix)
    out = {}
    for name, matrices in found.items():
        module: Any = base_transformer(model).get_submodule(name)
        module = getattr(module, "base_layer", module)  # where a tuner wraps it
        outputs = module.weight.shape[1 if (turned := isinstance(module, Conv1D)) else 0]
        rows = tuple(sorted((start, stop) for m in matrices for _, start, stop in m.blocks))
        whole = sum(stop - start for start, stop in rows) in (0, outputs)
        out[f"{name}.weight"] = Weight(name, turned, () if whole else rows)
    return out


def head_sizes(model: nn.Module) -> tuple[int, int, int]:
    """(query heads, key and value heads, features of a head)."""
    q, kv, size = _heads(base_transformer(model).config)
    return q // size, kv // size, size


def _layers(model: nn.Module, config: Any, layout: Layout, stack: str, path: str, names: set[str]) -> list[Layer]:
    if path not in names:
        return []
    found = []
    for i in range(len(model.get_submodule(path))):  # type: ignore[arg-type]
        at = f"{path}.{i}."
        matrices = []
        for role, where in layout.matrices.items():
            module, rows = (where, None) if isinstance(where, str) else where
            if at + module in names:
                matrices.append(Matrix(role, at + module, rows(config) if rows else ()))
        norms = tuple(at + n for n in layout.norms if at + n in names)
        found.append(Layer(stack, i, at[:-1], at + layout.attention, at + layout.feed_forward, tuple(matrices), norms))
    return found


def _name_of(model: nn.Module, module: nn.Module | None) -> str | None:
    if module is None:
        return None
    return next((n for n, m in model.named_modules(remove_duplicate=False) if m is module), None)


def _head_name(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        return _name_of(model, head)
    for name in TASK_HEADS:
        if getattr(model, name, None) is not None:
            return name
    return None


OWN_HEAD = "own_head"
"""Attribute name of what an objective trains beside the model, for the time of a run."""
TASK_HEADS = ("classifier", "score", "qa_outputs", OWN_HEAD)
"""Attribute names of the task heads that transformers adds on top of a backbone, and of the objective's own."""


def all_norms(model: nn.Module) -> list[str]:
    """Names of the normalisation modules that have parameters, those of heads too, of whatever class."""
    return [
        n
        for n, m in model.named_modules()
        if "norm" in type(m).__name__.lower() and next(m.parameters(recurse=False), None) is not None
    ]


def in_task_head(name: str) -> bool:
    """Whether the parameter `name` belongs to one of them, wrapped or not."""
    return any(part in TASK_HEADS for part in name.split("."))
