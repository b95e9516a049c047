"""The bridge to peft: a method file that holds only its mathematics becomes a peft tuner type.

A method subclasses one of these bases, by what its part does to the model:

    ReparamTuner   W' = W + delta_weight()             can be merged                        (on weight matrices)
    ModuleTuner    y' = forward(y, x)                   a module after or beside a block     (on blocks or matrices)
    PromptTuner    prompt rows and input corrections    around the whole backbone
    AttentionTuner out = forward(attend, q, k, v)       inside attention, head by head          (core/attention.py)
    CompositeTuner several of these in one adapter

and writes `build(...)`, which returns the part, and `parameter_count`. Registration with peft, wrapping, several named
adapters, saving and loading as a peft folder, switching off, merging, padding, positions and caches are here, once.
`PeftModel.from_pretrained`, trl's and transformers' trainers then take the type like any of peft's own.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import peft
import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftType, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import register_peft_method
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.core.anatomy import TASK_HEADS, Anatomy, Inside, all_norms, anatomy, base_transformer, kind_of
from luthier.core.batch import positions_from_mask
from luthier.core.method import HEADED, TUNER_CAPABILITIES, Refusal, Tuner

PEFT_TASKS = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "masked_lm": None,
    "embedding": "FEATURE_EXTRACTION",
}


WHOLE_BATCH = (
    "adapter_names: rows of a batch can differ in what acts inside attention alone, not in this adapter or in a task head: "
    "set_adapter, then ask for the rows of one adapter"
)


class PeftTuner(Tuner):
    """A tuner hosted by peft: the method gives a peft config, peft does the rest."""

    artefact: ClassVar[str] = "adapter"

    def peft_config(self, model: nn.Module, task: str) -> PeftConfig:
        raise NotImplementedError

    def wrap(self, model: nn.Module, task: str, seed: int = 0) -> nn.Module:
        if kind_of(model) not in self.kinds:
            raise Refusal(f"{self.name} does not support {kind_of(model)} models, only {', '.join(sorted(self.kinds))}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(model, self.peft_config(model, task))


def head_modules(model: nn.Module, task: str) -> list[str] | None:
    """Task heads that are trained and saved beside an adapter (`modules_to_save`)."""
    if task not in HEADED:
        return None
    inner = base_transformer(model)
    return [n for n in TASK_HEADS if getattr(inner, n, None) is not None] or None


def norm_modules(model: nn.Module) -> list[str]:
    """Names of the normalisation modules of the backbone (not of a task head), those outside the layers too."""
    at = anatomy(model).backbone
    return [n for n in all_norms(base_transformer(model)) if n.startswith(at)]


def linear_size(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a weight matrix module, or of the one that an adapter's layer wraps."""
    module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    raise Refusal(f"{type(module).__name__} is not a weight matrix that a reparameterisation can change")


# ------------------------------------------------------------------------------------------------- bridged


class BridgedTuner(PeftTuner):
    """A tuner type of luthier's own. The class registers itself with peft under `luthier_<file name>`."""

    bridge: ClassVar[tuple[type[Any], type[Any]]]
    layer_class: ClassVar[type]
    model_class: ClassVar[type | None] = None  # BridgedModel, or one that prepares what the model is given

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        if not cls.__module__.startswith("luthier.core.") and not cls.__module__.rsplit(".", 1)[-1].startswith("_"):
            register(cls)

    @classmethod
    def layer_classes(cls) -> tuple[type, ...]:
        """Kinds of layers that wrap the targets."""
        return (cls.layer_class,)

    def layer_class_for(self, model: nn.Module, name: str) -> type:
        """The kind of layer around target `name`."""
        return self.layer_class

    def shares(self, model: nn.Module, name: str) -> bool:
        """Whether the part at target `name` is given what `build_shared` makes."""
        return type(self).build_shared is not BridgedTuner.build_shared

    def target_modules(self, model: nn.Module) -> list[str]:
        """Names of the modules that get a part."""
        raise NotImplementedError

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        """The part for one target (bases translate this into their `build`)."""
        raise NotImplementedError

    def build_shared(self, model: nn.Module) -> nn.Module | None:
        """What all parts of one adapter have in common; each finds it as `self.shared`. None: nothing.

        It is one module under every part: its tensors are trained, counted and stored once.
        """
        return None

    def trained_copies(self, model: nn.Module) -> list[str]:
        """Names of modules of the base of which the adapter trains and stores its own copy (norms, say)."""
        return []

    def copied_scalars(self, model: nn.Module) -> int:
        """Scalars of these copies."""
        return sum(p.numel() for n in self.trained_copies(model) for p in model.get_submodule(n).parameters())

    def peft_config(self, model: nn.Module, task: str) -> PeftConfig:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self).bridge[0](
            **fields,
            task_type=PEFT_TASKS[task],
            target_modules=self.target_modules(model),
            modules_to_save=[*(head_modules(model, task) or []), *self.trained_copies(model)] or None,
        )


def register(method: type[BridgedTuner]) -> None:
    """Make `method` a peft type as its class is created: peft config and model classes under `luthier_<file name>`."""
    name = f"luthier_{method.__module__.rsplit('.', 1)[-1]}"
    member = name.upper()
    if member not in PeftType.__members__:
        _add_member(member)
    config_class = _config_class(method, name)
    model_class = _model_class(method, name)
    if PeftType[member] not in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_class, model_cls=model_class, prefix=f"{name}_")
    method.bridge = (config_class, model_class)


def _add_member(name: str) -> None:
    """peft has no public call to extend its enum of types (card 60, item 15)."""
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)


def _config_class(method: type[BridgedTuner], name: str) -> type:
    def finish(self: Any) -> None:
        PeftConfig.__post_init__(self)
        self.peft_type = PeftType[name.upper()]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)

    own = [(field, Any, getattr(method, field)) for field in _field_names(method)]
    shared = [
        ("target_modules", Any, None),
        ("exclude_modules", Any, None),
        ("modules_to_save", Any, None),
    ]
    config = dataclasses.make_dataclass(
        f"{method.__name__}Config",
        own + shared,
        bases=(PeftConfig,),
        namespace={"__post_init__": finish, "method": method},
    )
    config.__doc__ = f"peft config of luthier's {method.__name__}; fields as in {method.__module__}."
    config.__module__ = method.__module__
    return config


def _field_names(method: type) -> list[str]:
    """Option names of a method class that the dataclass decorator has not seen yet. Every option has a default."""
    names: dict[str, None] = {}
    for cls in reversed(method.__mro__):
        for name, kind in cls.__dict__.get("__annotations__", {}).items():
            if not str(kind).removeprefix("typing.").startswith("ClassVar"):  # a string, or the type itself
                names[name] = None
    return list(names)


def method_of(config: Any) -> BridgedTuner:
    """The method object that a config of ours describes."""
    cls = config.method
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(cls)}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _model_class(method: type[BridgedTuner], name: str) -> type:
    parts = f"{name}_parts"
    own = type(f"{method.__name__}Layer", (BridgedLayer,), {"parts_name": parts, "adapter_layer_names": (parts,)})
    layers = {cls: type(f"{method.__name__}Layer", (cls, own), {}) for cls in method.layer_classes()}
    return type(
        f"{method.__name__}Model",
        (method.model_class or BridgedModel,),
        {"prefix": f"{name}_", "tuner_layer_cls": own, "layer_types": layers, "__module__": method.__module__},
    )


class BridgedModel(BaseTuner):
    """peft's tuner for every bridged method: finds targets by role, wraps them, keeps several adapters."""

    tuner_layer_cls: type[Any]
    target_module_mapping: dict[str, list[str]] = {}
    layer_types: ClassVar[dict[type, type]] = {}

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config  # targets come from the model's anatomy, which needs the model: see _prepare_model

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(method_of(peft_config).target_modules(model))

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        method = method_of(peft_config)
        shared = None
        if method.shares(self.model, current_key):
            shared = self._shared(adapter_name) or method.build_shared(self.model)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, method, self.model, current_key, shared)
            return
        layer = self.layer_types[method.layer_class_for(self.model, current_key)](target)
        layer.update_layer(adapter_name, peft_config, method, self.model, current_key, shared)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        setattr(parent, target_name, layer)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """peft asks here for adapters by row (`adapter_names`); those that cannot must not pass over it."""
        if kwargs.get("adapter_names") is not None:
            raise Refusal(WHOLE_BATCH)
        yield

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def _shared(self, adapter_name: str) -> nn.Module | None:
        """What the parts of an adapter share, from the first part that is there."""
        layers = (m for m in self.model.modules() if isinstance(m, self.tuner_layer_cls) and adapter_name in m.parts)
        found = (getattr(layer.parts[adapter_name], "shared", None) for layer in layers)
        return next((shared for shared in found if shared is not None), None)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """peft takes the name off the last two levels of a key only; a part may have modules inside."""
        return key.replace(f".{cls.prefix}parts.{adapter_name}.", f".{cls.prefix}parts.", 1)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """What parts share is there once, under the first part."""
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        firsts = {name: key for key in reversed(list(found)) if (name := cls._shared_name(key, adapter_name))}
        return {k: v for k, v in found.items() if firsts.get(cls._shared_name(k, adapter_name), k) == k}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """And is put back under each."""
        stored = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        once = {name: v for k, v in stored.items() if (name := cls._shared_name(k, adapter_name))}
        names = {k: cls._shared_name(k, adapter_name) for k in model.state_dict()}
        return stored | {k: once[name] for k, name in names.items() if name in once}

    @classmethod
    def _shared_name(cls, key: str, adapter_name: str) -> str:
        """Name of a shared tensor inside what is shared; empty for all other tensors."""
        return key.partition(f".{cls.prefix}parts.{adapter_name}.shared.")[2]


class BridgedLayer(nn.Module, BaseTunerLayer):
    """Keeps the wrapped module and one part per adapter. Attributes of the wrapped module stay reachable."""

    base_layer: Any  # of no one class
    parts_name: ClassVar[str] = ""
    other_param_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        setattr(self, self.parts_name, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = []
        self.train(base_layer.training)

    @property
    def parts(self) -> nn.ModuleDict:
        return getattr(self, self.parts_name)

    def update_layer(
        self,
        adapter_name: str,
        config: PeftConfig,
        method: BridgedTuner,
        model: nn.Module,
        name: str,
        shared: nn.Module | None = None,
    ) -> None:
        self.placed(model, name)
        part = method.build_for(self.get_base_layer(), model, name)
        if shared is not None:
            part.shared = shared  # registered under every part: one module, so deepcopy, .to() and peft keep it one
        reference = next(self.get_base_layer().parameters(), None)
        empty = any(p.device.type == "meta" for p in part.parameters())  # low_cpu_mem_usage: filled from a file later
        if reference is not None and reference.device.type != "meta" and not empty:
            dtype = reference.dtype if reference.dtype.is_floating_point else None
            part.to(device=reference.device, dtype=dtype)
        self.parts[adapter_name] = part
        active = self.active_adapters or [adapter_name]
        self.set_adapter(active, inference_mode=config.inference_mode)

    def placed(self, model: nn.Module, name: str) -> None:
        """Called before a part is built for the module `name` that this layer wraps."""

    def active_parts(self) -> list[Any]:
        if self.disable_adapters:
            return []
        return [self.parts[n] for n in self.active_adapters if n in self.parts and n not in self.merged_adapters]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise Refusal(
            f"{type(self).__name__.removesuffix('Layer')} cannot be merged into the weights: "
            "it is not linear in them. Ship the base and the adapter folder."
        )

    def unmerge(self) -> None:
        raise Refusal(f"{type(self).__name__.removesuffix('Layer')} is never merged")

    def fold(self, name: str) -> None:
        """Adapter `name`'s part reduced to what serving needs: its own `folded()`; without one it is that already."""
        part: Any = self.parts[name]
        if hasattr(part, "folded"):
            self.parts[name] = part.folded()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False


# -------------------------------------------------------------------------------------- reparameterisation


class ReparamPart(nn.Module):
    """W' = W + delta_weight(), with delta_weight of shape (outputs, inputs)."""

    def delta_weight(self) -> Tensor:
        raise NotImplementedError

    def delta(self, x: Tensor) -> Tensor:
        """delta_weight() applied to x (..., inputs); override where a product of factors is cheaper."""
        return F.linear(x, self.delta_weight())


class ReparamLayer(BridgedLayer):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged_adapters:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        for part in self.active_parts():
            y = y + part.delta(x.to(next(part.parameters()).dtype)).to(y.dtype)
        return y

    def _delta(self, name: str) -> Tensor:
        part: Any = self.parts[name]
        delta = part.delta_weight()
        base = self.get_base_layer()
        return (delta.T if isinstance(base, Conv1D) else delta).to(base.weight.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.parts:
                continue
            weight: Any = self.get_base_layer().weight
            merged = weight.data + self._delta(name)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"adapter {name} gives weights that are not finite: it was not merged")
            weight.data = merged
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            weight: Any = self.get_base_layer().weight
            weight.data -= self._delta(name)


class ReparamTuner(BridgedTuner):
    """Base of methods that add a matrix to weight matrices.

    Fields a method usually has: `targets` (roles). `build(inputs, outputs)` returns the part.
    """

    layer_class: ClassVar[type] = ReparamLayer
    targets: tuple[str, ...] = ("q", "v")

    def build(self, inputs: int, outputs: int) -> ReparamPart:
        raise NotImplementedError

    def target_modules(self, model: nn.Module) -> list[str]:
        return found_modules(self, anatomy(model), self.targets)

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        return self.build(*linear_size(target))

    def shapes(self, model: nn.Module) -> list[tuple[int, int]]:
        """(inputs, outputs) of every target, for counting."""
        return [linear_size(model.get_submodule(n)) for n in self.target_modules(model)]


# ------------------------------------------------------------------------------------------------ modules


class ModulePart(nn.Module):
    """A module after (`y`) or beside (`x`) the wrapped one. Both are (B, T, D).

    Around a block, y is what its sublayer gives before the residual is added, x what the sublayer reads: in pre-norm
    models the normed states, in post-norm models the states themselves.
    """

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class ModuleLayer(BridgedLayer):
    inside: Inside | None = None

    def placed(self, model: nn.Module, name: str) -> None:
        self.inside = anatomy(model).inside.get(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parts = self.active_parts()
        if not parts:
            return self.base_layer(*args, **kwargs)
        if self.inside is not None:
            return self._before_residual(parts, args, kwargs)
        out = self.base_layer(*args, **kwargs)
        x = args[0] if args else kwargs["hidden_states"]
        y = _through(parts, out[0] if isinstance(out, tuple) else out, x)
        return (y, *out[1:]) if isinstance(out, tuple) else y

    def _before_residual(self, parts: list[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block that adds its residual itself: parts go to where its sublayer ends, for this one call."""
        assert self.inside is not None
        end, place, argument = self.inside
        x = args[place] if len(args) > place else kwargs[argument]
        matrix = self.base_layer.get_submodule(end)
        handle = matrix.register_forward_hook(lambda _, inputs, y: _through(parts, y, x))
        try:
            return self.base_layer(*args, **kwargs)
        finally:
            handle.remove()


def _through(parts: list[nn.Module], y: Tensor, x: Tensor) -> Tensor:
    for part in parts:
        parameter = next(part.parameters(), y)
        y = part(y.to(parameter.dtype), x.to(parameter.dtype)).to(y.dtype)  # peft keeps parts in float32
    return y


class ModuleTuner(BridgedTuner):
    """Base of methods that insert a module after or beside parts of a block.

    `build(width)` returns the part for a block whose output has `width` features.
    """

    layer_class: ClassVar[type] = ModuleLayer
    targets: tuple[str, ...] = ("o", "down")

    def build(self, width: int) -> ModulePart:
        raise NotImplementedError

    def target_modules(self, model: nn.Module) -> list[str]:
        return found_modules(self, anatomy(model), self.targets)

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        width = (
            linear_size(target)[1]
            if isinstance(target, nn.Linear | Conv1D)
            else base_transformer(model).config.hidden_size
        )
        return self.build(width)


# --------------------------------------------------------------------------------------------- composition


class CompositeTuner(BridgedTuner):
    """Base of methods that are several tuners at once: one peft type, one adapter folder.

    `members()` gives the tuners, of family classes, filled in from the method's own fields; `member_layers` the kinds
    of layers that they use. No two members may wrap the same module, and one may share tensors between its parts.
    """

    member_layers: ClassVar[tuple[type, ...]]

    def members(self) -> tuple[BridgedTuner, ...]:
        raise NotImplementedError

    @classmethod
    def layer_classes(cls) -> tuple[type, ...]:
        return cls.member_layers

    def at(self, model: nn.Module, name: str) -> BridgedTuner:
        """The member that target `name` belongs to."""
        return next(m for m in self.members() if name in m.target_modules(model))

    def layer_class_for(self, model: nn.Module, name: str) -> type:
        return self.at(model, name).layer_class

    def shares(self, model: nn.Module, name: str) -> bool:
        return self.at(model, name).shares(model, name)

    def build_shared(self, model: nn.Module) -> nn.Module | None:
        return next((s for m in self.members() if (s := m.build_shared(model)) is not None), None)

    def trained_copies(self, model: nn.Module) -> list[str]:
        return [n for m in self.members() for n in m.trained_copies(model)]

    def target_modules(self, model: nn.Module) -> list[str]:
        names = [n for m in self.members() for n in m.target_modules(model)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise Refusal(f"{self.name} would put two parts around '{twice[0]}'")
        return names

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        return self.at(model, name).build_for(target, model, name)

    def parameter_count(self, model: nn.Module) -> int:
        return sum(m.parameter_count(model) for m in self.members())


def found_modules(method: Tuner, body: Anatomy, roles: tuple[str, ...]) -> list[str]:
    """Names of the modules of `roles`. Raises Refusal where the architecture has none."""
    names = body.modules(roles)
    if not names:
        raise Refusal(
            f"{method.name} found no module with roles {', '.join(roles)} in architecture '{body.model_type}'"
        )
    return names


# ------------------------------------------------------------------------------------------------ prompts


@dataclasses.dataclass(frozen=True)
class PromptLabel:
    """Prompt row `row` stands for `token`, a label of the example that is `age` examples before the prompt's last."""

    row: int
    token: int
    age: int


class PromptPart(nn.Module):
    """Prompt rows (m, D) in front of the input, and a correction of the input embeddings."""

    def prompt(self) -> Tensor:
        raise NotImplementedError

    def correction(self) -> Tensor | None:
        """(s, D), added to the embeddings of the first s real tokens; None: nothing is."""
        return None

    def labels(self) -> list[PromptLabel]:
        """Rows that stand for tokens which an objective may score from the rows before them."""
        return []

    @property
    def tokens(self) -> int:
        """m; override where the prompt is computed, so that a cached step need not compute it."""
        return self.prompt().shape[0]

    def correct(self, embedded: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) input embeddings at `positions` (B, T); `mask` is False on padding. Out of place."""
        table = self.correction()
        if table is None:
            return embedded
        inside = mask & (positions < len(table))
        rows = F.embedding(positions.clamp(max=len(table) - 1), table)  # (B, T, D)
        return embedded + rows * inside[..., None]


class FoldedPrompt(PromptPart):
    """A prompt for serving: what a part computes from its tensors, as plain vectors."""

    def __init__(self, rows: Tensor, table: Tensor | None = None):
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone(), requires_grad=False)
        self.table = None if table is None else nn.Parameter(table.detach().clone(), requires_grad=False)

    def prompt(self) -> Tensor:
        return self.rows

    def correction(self) -> Tensor | None:
        return self.table


class PromptReader(nn.Module):
    """Stands for a prompt on a decoder that reads it through cross-attention only: nothing to train."""


class PromptLayer(BridgedLayer):
    """Around the backbone: ids become embeddings, the prompt goes in front, positions come from the mask.

    The prompt stands before everything else, padding included, and is visible to every token; real tokens count their
    positions from m. With a cache the prompt is there already: then only the mask and the positions grow by m. The m
    first states are cut off, so heads, labels and losses never see the prompt.

    An encoder-decoder has one such layer around each half. Its positions are distances between columns, so in the
    encoder the prompt stands right before the first real token of its row; the decoder's cross-attention sees the
    prompt's states, and nothing else of the decoder changes.

    keeps_prompt  the m first states are handed on (`prompt_states`)
    chosen        parts that stand for the active ones while core/attach.py gives each row its own prompt
    """

    keeps_prompt = False
    chosen: list[Any] | None = None

    def active_parts(self) -> list[Any]:
        return super().active_parts() if self.chosen is None else self.chosen

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        parts = self.active_parts()
        if not parts:
            return self.base_layer(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if isinstance(parts[0], PromptReader):
            return self._read(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        embedded = kwargs.pop("inputs_embeds", None)
        if embedded is None:
            backbone: Any = self.base_layer
            embedded = backbone.get_input_embeddings()(input_ids)  # (B, T, D)
        run = self._encode if self.base_layer.config.is_encoder_decoder else self._run
        return run(parts, embedded, attention_mask, **kwargs)

    def fold(self, name: str) -> None:
        part = self.parts[name]
        if isinstance(part, PromptPart):
            self.parts[name] = FoldedPrompt(part.prompt(), part.correction())

    def _run(self, parts: list[Any], embedded: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        B, T, _ = embedded.shape
        m = sum(p.tokens for p in parts)
        tokens_past = max(past - m, 0)
        if attention_mask is None:
            attention_mask = torch.ones(B, tokens_past + T, dtype=torch.long, device=embedded.device)
        positions, seen = self._positions(attention_mask, kwargs.pop("position_ids", None), T)
        fresh = past == 0
        embedded = _corrected(parts, embedded, positions, seen)
        if fresh:
            embedded = _in_front(parts, embedded)  # (B, m + T, D)
        if self._takes_positions:
            positions = positions + m
            if fresh:
                first = torch.arange(m, device=positions.device).expand(B, m)
                positions = torch.cat([first, positions], 1)
            kwargs["position_ids"] = positions + _first_position(self.base_layer)
        if fresh and kwargs.get("token_type_ids") is not None:
            kwargs["token_type_ids"] = F.pad(kwargs["token_type_ids"], (m, 0))
        kwargs.pop("cache_position", None)
        out = self.base_layer(inputs_embeds=embedded, attention_mask=_grow(attention_mask, m), **kwargs)
        return _cut(out, m) if fresh and m and not self.keeps_prompt else out

    def _encode(self, parts: list[Any], embedded: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        """The encoder half. All m + T states are kept for the decoder."""
        if attention_mask is None:
            attention_mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        embedded = _corrected(parts, embedded, positions_from_mask(attention_mask), attention_mask.bool())
        rows = _in_front(parts, embedded)  # (B, m + T, D)
        order = _before_first(attention_mask, rows.shape[1])
        rows = rows.gather(1, order[..., None].expand_as(rows))
        return self.base_layer(inputs_embeds=rows, attention_mask=_seen(attention_mask, rows.shape[1]), **kwargs)

    def _read(self, **kwargs: Any) -> Any:
        """The decoder half: the mask over encoder states grows to the states that there are."""
        states, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if states is not None and mask is not None:
            kwargs["encoder_attention_mask"] = _seen(mask, states.shape[1])
        return self.base_layer(**kwargs)

    @property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.base_layer.forward).parameters

    @staticmethod
    def _positions(mask: Tensor, given: Tensor | None, T: int) -> tuple[Tensor, Tensor]:
        """Positions (B, T) of the current tokens among real tokens, and which of them are real."""
        if mask.ndim == 2:
            positions, seen = positions_from_mask(mask)[:, -T:], mask[:, -T:].bool()
        else:  # additive (B, 1, T, T): a token that sees itself is real
            seen = mask[:, 0].diagonal(dim1=-2, dim2=-1)[:, -T:] == 0
            positions = positions_from_mask(seen)
        return (given if given is not None else positions), seen


def _corrected(parts: list[Any], embedded: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
    with torch.autocast(embedded.device.type, enabled=False):  # rates of prompts need full precision
        for part in parts:
            embedded = part.correct(embedded, positions, seen).to(embedded.dtype)
    return embedded


def _in_front(parts: list[Any], embedded: Tensor) -> Tensor:
    """(B, m + T, D): the prompts of all parts, then the tokens."""
    with torch.autocast(embedded.device.type, enabled=False):
        prompts = [p.prompt().to(embedded.dtype).expand(len(embedded), -1, -1) for p in parts]
    return torch.cat([*prompts, embedded], 1)


def _before_first(mask: Tensor, width: int) -> Tensor:
    """(B, m + T) order that moves m leading columns to right before the first column that (B, T) `mask` counts."""
    m = width - mask.shape[1]
    first = mask.long().argmax(1, keepdim=True)  # (B, 1)
    at = torch.arange(width, device=mask.device)[None]
    return torch.where(at < first, at + m, torch.where(at < first + m, at - first, at))


def _seen(mask: Tensor, width: int) -> Tensor:
    """The (B, T) mask of `width` columns of which those of the prompt, before the first real token, count."""
    return F.pad(mask, (width - mask.shape[1], 0), value=1).gather(1, _before_first(mask, width))


def _first_position(backbone: nn.Module) -> int:
    """Position of a first token. RoBERTa and its relatives count from the index after the padding's."""
    padding = getattr(getattr(getattr(backbone, "embeddings", None), "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1


def _grow(mask: Tensor, m: int) -> Tensor:
    """The mask with m prompt columns that everybody sees; in 4 dimensions also m causal rows."""
    if mask.ndim == 2:
        return F.pad(mask, (m, 0), value=1)
    low = torch.finfo(mask.dtype).min
    grown = F.pad(mask, (m, 0, m, 0), value=0.0)
    grown[:, :, :m, m:] = low
    grown[:, :, :m, :m] = torch.full((m, m), low, dtype=mask.dtype, device=mask.device).triu(1)
    return grown


def _cut(out: Any, m: int) -> Any:
    """Drop the first m positions of the states that a backbone returns."""
    for key in ("last_hidden_state", "hidden_states"):
        value = out.get(key) if hasattr(out, "get") else None
        if isinstance(value, Tensor):
            out[key] = value[:, m:]
        elif value is not None:
            out[key] = tuple(v[:, m:] for v in value)
    return out


def prompt_labels(model: nn.Module) -> tuple[int, list[PromptLabel]]:
    """m of the active prompts of a decoder, and their labels with rows counted over all m."""
    m = 0
    found: list[PromptLabel] = []
    for layer in model.modules():
        if isinstance(layer, PromptLayer) and not layer.base_layer.config.is_encoder_decoder:
            part: Any
            for part in layer.active_parts():
                found += [dataclasses.replace(label, row=label.row + m) for label in part.labels()]
                m += part.tokens
    return m, found


@contextmanager
def prompt_states(model: nn.Module) -> Iterator[None]:
    """While it lasts, a decoder's head sees (B, m + T, D): the prompt's states are not cut off."""
    layers = [layer for layer in model.modules() if isinstance(layer, PromptLayer)]
    try:
        for layer in layers:
            layer.keeps_prompt = True
        yield
    finally:
        for layer in layers:
            layer.keeps_prompt = False


class PromptTuner(BridgedTuner):
    """Base of soft-prompt methods. `build(width, table)` returns the part; `table` (V, D) is the embedding table."""

    layer_class: ClassVar[type] = PromptLayer

    def build(self, width: int, table: Tensor) -> PromptPart:
        raise NotImplementedError

    def target_modules(self, model: nn.Module) -> list[str]:
        body = anatomy(model)
        if body.kind == "encoder-decoder":
            at = f"{body.backbone}." if body.backbone else ""
            return [f"{at}encoder", f"{at}decoder"]
        if not body.backbone:
            raise Refusal(f"{self.name} needs a model with a head around a backbone, not a bare {type(model).__name__}")
        return [body.backbone]

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> nn.Module:
        backbone: Any = target
        if backbone.config.is_encoder_decoder and backbone.config.is_decoder:
            return PromptReader()
        table = backbone.get_input_embeddings().weight.detach()
        return self.build(table.shape[1], table)


# ------------------------------------------------------------------------------------------ asking for more


def demand(tuner: Tuner, capability: str) -> None:
    """Raises Refusal unless the tuner claims `capability` (a key of TUNER_CAPABILITIES)."""
    if capability not in tuner.capabilities:
        raise Refusal(f"{tuner.name} lacks the capability '{capability}' ({TUNER_CAPABILITIES[capability]})")


def merged(tuner: Tuner, model: Any) -> nn.Module:
    """The base with what was learned written into its weights: an ordinary model. Raises Refusal."""
    demand(tuner, "merge")
    return model.merge_and_unload()


def folded(tuner: Tuner, model: Any, name: str = "default") -> nn.Module:
    """Adapter `name` reduced, in place, to the vectors that serving needs. Saved and loaded as before. Raises Refusal."""
    demand(tuner, "fold")
    _fold(model, name)
    model.peft_config[name].folded = True
    return model


@torch.no_grad()  # as in serving: products may be summed in another order where gradients are recorded
def _fold(model: nn.Module, name: str) -> None:
    for layer in _layers(model, name):
        layer.fold(name)


def _layers(model: nn.Module, name: str) -> list[BridgedLayer]:
    """The layers that hold a part of adapter `name`."""
    return [m for m in model.modules() if isinstance(m, BridgedLayer) and name in m.parts]


@contextmanager
def as_served(tuner: Tuner, model: nn.Module, name: str = "default") -> Iterator[nn.Module]:
    """Adapter `name` as it is served, folded where it can be, while the context lasts; what was trained comes back."""
    kept = [(layer, layer.parts[name]) for layer in _layers(model, name)] if "fold" in tuner.capabilities else []
    try:
        if kept:
            _fold(model, name)
        yield model
    finally:
        for layer, part in kept:
            layer.parts[name] = part


@contextmanager
def switched_off(tuner: Tuner, model: Any) -> Iterator[nn.Module]:
    """The base, while the context lasts. Raises Refusal."""
    demand(tuner, "off")
    with model.disable_adapter():
        yield model


def add_adapter(tuner: Tuner, model: Any, name: str, task: str, seed: int = 0) -> None:
    """A further adapter under `name` on a wrapped model, inactive until `set_adapter(name)`. Raises Refusal."""
    demand(tuner, "several")
    assert isinstance(tuner, PeftTuner)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(name, tuner.peft_config(base_transformer(model), task))


Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def activation(name: str) -> Activation:
    """A non-linearity by name. Raises Refusal with the valid names."""
    if name not in ACTIVATIONS:
        raise Refusal(f"unknown activation '{name}': one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


# Whoever needs this module may load any adapter: the tuner files register with peft as they are imported. By name,
# because the folder is the list and nothing here depends on what is in it.
importlib.import_module("luthier.tuners")
