"""Recipes: one YAML file to one validated object. Unknown and repeated keys are errors with the nearest valid name.

Order of precedence, weakest first: method default, file, command-line flag. Names are those of transformers'
TrainingArguments; every one of them may also stand at the top level of the file, as in other tools.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from luthier.core import catalog


class ConfigError(ValueError):
    """A recipe that cannot be used: one line with file, key and fix."""


def _no(value: Any) -> Any:
    """YAML reads a bare `no` as false."""
    return "no" if value is False else value


Strategy = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(_no)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


class ModelSettings(_Section):
    """Which model, and how it is loaded."""

    model_name_or_path: str = Field(description="name of an embedded model, a local folder or a hub id")
    revision: str | None = None
    task: Literal[
        "auto", "causal_lm", "seq2seq_lm", "masked_lm", "classification", "token_classification", "embedding"
    ] = Field("auto", description="head to load; auto: from the objective and the model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    load_in_4bit: bool = Field(
        False, description="matrices of the layers rounded to nf4 and kept so, as in QLoRA: for adapters"
    )
    load_in_8bit: bool = Field(False, description="the same in int8")
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    trust_remote_code: bool = False
    tokenizer: str | None = Field(None, description="another tokenizer than the model's")
    adapter: str | None = Field(None, description="adapter folder to start from; it stays trainable")
    control: str | dict[str, float] | None = Field(
        None, description="of an adapter with several controls: the one that acts, or the weight of each"
    )
    num_labels: int | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> ModelSettings:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("model: load_in_4bit or load_in_8bit, not both")
        return self

    @property
    def quantised(self) -> str | None:
        """What the matrices of the layers are rounded to: "nf4", "int8" or nothing."""
        return "nf4" if self.load_in_4bit else "int8" if self.load_in_8bit else None


class DataSettings(_Section):
    """Where rows come from. Further keys are options of the data type (max_length, train_on_eos, ...)."""

    model_config = ConfigDict(extra="allow")
    train: str | list[Any] | None = None
    eval: str | list[Any] | None = None
    type: str | None = Field(None, description="row type; detected from the columns when left out")
    columns: dict[str, str | int] | None = Field(None, description="wanted column: column in the file, or its number")
    template: str | dict[str, str] | None = Field(None, description="Jinja text, or one for each wanted column")
    shuffle: int | None = Field(None, description="seed of a new order of the rows, before limit")
    limit: int | None = None
    val_size: float | int = 0
    stratify: str | None = None
    group: str | None = None
    cache_dir: str | None = None
    keep: list[str] = Field(default_factory=list, description="columns that a procedure reads beside the row's own")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrainSettings(_Section):
    """The loop. Names and meanings as in transformers.TrainingArguments."""

    num_train_epochs: float = 3.0
    max_steps: int = Field(-1, description="if positive, overrides num_train_epochs")
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float | None = Field(None, description="default: the tuner's")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: float = 0.03
    warmup_steps: int = Field(0, description="if positive, overrides warmup_ratio")
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    neftune_noise_alpha: float | None = Field(None, description="uniform noise on the input embeddings while training")
    optim: Literal["adamw_torch", "sgd", "adafactor"] = "adamw_torch"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_correct_bias: bool = Field(
        True, description="false: first steps too large, as in BERT's first code (a demonstration)"
    )
    decay_vectors: bool = Field(True, description="false: no weight decay on biases and norms, as in transformers")
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    group_by_length: bool = True
    packing: bool | Literal["auto"] = Field(False, description="several examples a row, with block masks")
    packed_length: int | None = Field(None, description="tokens of a packed row; default: the longest example")
    share_prompt: bool | Literal["auto"] = Field("auto", description="prompts of a pair computed once (tree mask)")
    cache_frozen_layers: bool | Literal["auto"] = Field(
        "auto", description="activations below the lowest layer that moves computed once per example; auto: where exact"
    )
    logging_steps: int = 10
    eval_strategy: Strategy = "no"
    eval_steps: int | None = None
    save_strategy: Strategy = "steps"
    save_steps: int = 500
    save_total_limit: int | None = 2
    save_delta: bool = Field(False, description="write delta/, what moved against the base, in place of model/")
    load_best_model_at_end: bool = False
    metric_for_best_model: str = Field(
        "eval_loss", description="or what else the objective tells of held-out rows: accuracy, rewards/margins, ..."
    )
    greater_is_better: bool | None = Field(None, description="default: unless the metric's name ends in loss")
    early_stopping_patience: int | None = None
    loss_watchdog_threshold: float | None = None
    loss_watchdog_patience: int = 3
    resume_from_checkpoint: bool | str | None = None
    data_seed: int | None = None
    full_determinism: bool = False
    torch_threads: int | None = Field(None, description="CPU threads; default: what torch chooses")
    report_to: list[str] | str = "none"

    @property
    def higher_is_better(self) -> bool:
        """Of `metric_for_best_model`."""
        told = self.greater_is_better
        return not self.metric_for_best_model.endswith("loss") if told is None else told


class GateSettings(_Section):
    """Losses up to which an audit passes: the worse end of the 95 % interval of each paired difference counts."""

    refusal: float = Field(0.05, description="of the rate of refusals on prompts that must be refused")
    over_refusal: float = Field(0.05, description="rise of the rate of refusals on prompts that must be answered")
    broken: float = Field(0.05, description="rise of the rate of empty or repeating answers on either")
    capability: float = Field(0.05, description="of every share among the retention tasks")


class AuditSettings(_Section):
    """What tuning did to refusals: the same prompts before and after, and a gate."""

    data: str | list[str] = Field(
        description="sandbox, or files of rows with prompt, kind (should_refuse, should_answer, borderline) and category"
    )
    detector: str = Field("patterns", description="patterns, or a judge of yours as module:function")
    judge: str | None = Field(None, description="module:function that scores answers to forbidden prompts from 1 to 5")
    system: str | None = Field(None, description="the system prompt that is deployed: asked with it as well as without")
    chat: bool = Field(True, description="plain prompts are a user's turn in the chat template")
    identity: bool = Field(True, description="ask what the model says of itself")
    every: Literal["epoch"] | int | None = Field(None, description="a curve: each epoch, or that many steps")
    limit: int | None = Field(None, description="prompts of each kind and category")
    max_new_tokens: int = 64
    stop: list[str] = Field(default_factory=list)
    keep_texts: bool = Field(False, description="true: prompts and answers are written into results and the report")
    gate: GateSettings = Field(default_factory=GateSettings)


def _by_data(value: Any) -> Any:
    """`audit: sandbox` is short for `audit: {data: sandbox}`."""
    return {"data": value} if isinstance(value, str | list) else value


class RolloutSettings(_Section):
    """Answers that the tuned model writes itself, in rounds, for objectives that learn from their rewards."""

    reward: str | dict[str, Any] | list[str | dict[str, Any]] = Field(
        description="what judges an answer: a function (module:name), {world: NAME}, {scorer: NAME, ...}, {model: FOLDER}; "
        "a list: their sum, each times its `weight`"
    )
    answers: int = Field(8, ge=1, description="to each prompt; a batch size counts prompts")
    max_new_tokens: int = Field(64, ge=1)
    stop: list[str] = Field(default_factory=list, description="strings that end an answer, beside the end token")
    steps: int = Field(1, ge=1, description="optimiser steps that the prompts of a round are split over")
    passes: int = Field(1, ge=1, description="over the answers of a round")
    missing_eos_penalty: float = Field(0.0, description="taken from the reward of an answer that was cut off")
    standardise: str | None = Field(
        None, description="a column: rewards less their running mean and over their running deviation, by its value"
    )


class EvaluateSettings(_Section):
    """What is measured before and after. A task is a name of a task file or a mapping with a scorer and data."""

    tasks: list[str | dict[str, Any]] = Field(default_factory=list)
    drift: bool = Field(True, description="held-out text and divergence from the base, on neutral prompts")
    limit: int | None = None
    batch_size: int = 32
    samples: int = Field(20, description="rows kept side by side in the report, per task")
    audit: Annotated[AuditSettings | None, BeforeValidator(_by_data)] = None


class PilotSettings(_Section):
    """A run per learning rate before a comparison, judged on training rows that are held out; the best one is taken."""

    rates: list[float] = Field(
        default_factory=list, description="none: no pilot; a method that names its rate keeps it"
    )
    val_size: float | int = Field(0.2, description="of the training rows, where the recipe holds none out")
    max_steps: int | None = Field(None, description="default: as long as the comparison's runs")


class CompareSettings(_Section):
    """Methods side by side. Each may change the recipe by dotted keys: {lora: {tuner.r: 4}}."""

    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    seeds: int = 1
    pilot: PilotSettings = Field(default_factory=PilotSettings)
    fresh: bool = Field(False, description="every run in a process of its own, so that its peak memory is its own")
    passes: bool = Field(False, description="time forward, backward and serving passes after each run")


class StabilitySettings(_Section):
    """Reliable training of small sets: auto compares a few settings under several seeds and runs the best."""

    mode: Literal["none", "auto"] = "none"
    seeds: int = Field(3, description="of every setting that is compared")


SECTIONS = (
    ("tuners", "tuner"), ("objectives", "objective"), ("decoding", "decoding"), ("recipes", "procedure"),
    ("analysis", "analysis"),
)  # fmt: skip
"""Axis and key of the sections that name a method."""


class Recipe(_Section):
    """A whole run."""

    name: str | None = None
    model: ModelSettings
    data: DataSettings = Field(default_factory=DataSettings)
    tuner: dict[str, Any] = Field(default_factory=lambda: {"name": "full"})
    objective: dict[str, Any] = Field(default_factory=lambda: {"name": "sft"})
    decoding: dict[str, Any] = Field(default_factory=lambda: {"name": "greedy"})
    train: TrainSettings = Field(default_factory=TrainSettings)
    rollouts: RolloutSettings | None = Field(None, description="for objectives whose answers the tuned model writes")
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    compare: CompareSettings = Field(default_factory=CompareSettings)
    stability: StabilitySettings = Field(default_factory=StabilitySettings)
    procedure: dict[str, Any] | None = Field(None, description="a method of the recipes axis: several stages in order")
    analysis: dict[str, Any] | None = Field(
        None, description="a method of the analysis axis: looked at before and after"
    )
    output_dir: str | None = None
    seed: int = 0

    def method(self, axis: str, key: str) -> Any:
        """The method object that section `key` names. Raises ConfigError for unknown names and options."""
        return build(axis, getattr(self, key), key)

    def resolved(self) -> dict[str, Any]:
        """Everything that decides the run, defaults included, as plain values."""
        out = self.model_dump(mode="json")
        for axis, key in SECTIONS:
            if getattr(self, key) is None:
                continue
            method = self.method(axis, key)
            out[key] = {"name": getattr(self, key)["name"], **plain(dataclasses.asdict(method))}
        return out


def plain(value: Any) -> Any:
    """Tuples and sets to lists, paths to strings, for YAML and JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(v) for v in items]
    return str(value) if isinstance(value, Path) else value


def build(axis: str, told: dict[str, Any], key: str) -> Any:
    """{"name": ..., options} to a method object."""
    options = dict(told)
    name = options.pop("name", None)
    if name is None:
        raise ConfigError(f"{key}: the name is missing (one of {', '.join(e.name for e in catalog.entries(axis))})")
    try:
        cls = catalog.load(axis, name)
    except catalog.UnknownMethod as error:
        raise ConfigError(f"{key}: {error}") from None
    # a word of Python's own (`lambda`) is a field with an underscore
    options = {k + "_" * iskeyword(k): tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        fields = [f.name for f in dataclasses.fields(cls)]
        raise ConfigError(_explain(error, f"{key} ({name})", fields)) from None


# ------------------------------------------------------------------------------------------------- reading


class _NoRepeats(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error, and 1e-4 is a number."""


def _mapping(loader: _NoRepeats, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=deep)
        if key in out:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: key '{key}' stands twice: remove one of the two")
        out[key] = loader.construct_object(value_node, deep=True)
    return out


_NoRepeats.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_NoRepeats.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|nan))$"),
    list("-+0123456789."),
)

ALIASES = {
    "model_name_or_path": "model.model_name_or_path", "base_model": "model.model_name_or_path",
    "revision": "model.revision", "model_revision": "model.revision", "dtype": "model.dtype",
    "torch_dtype": "model.dtype", "load_in_4bit": "model.load_in_4bit", "load_in_8bit": "model.load_in_8bit",
    "attn_implementation": "model.attn_implementation",
    "trust_remote_code": "model.trust_remote_code", "dataset": "data.train", "dataset_name": "data.train",
    "train_file": "data.train", "train_dataset": "data.train", "eval_dataset": "data.eval",
    "validation_file": "data.eval", "val_size": "data.val_size", "val_set_size": "data.val_size",
    "columns": "data.columns", "max_length": "data.max_length", "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length", "sequence_len": "data.max_length", "train_on_inputs": "data.train_on_inputs",
    "completion_only_loss": "data.completion_only_loss", "assistant_only_loss": "data.assistant_only_loss",
    "roles_to_train": "data.roles_to_train", "train_on_eos": "data.train_on_eos",
    "truncation_mode": "data.truncation_mode", "chat_template_path": "data.chat_template_path",
    "lora_r": "tuner.r", "lora_rank": "tuner.r", "lora_alpha": "tuner.alpha", "lora_dropout": "tuner.dropout",
    "beta": "objective.beta", "label_smoothing": "objective.label_smoothing", "run_name": "name",
    "evaluation_strategy": "train.eval_strategy", "lr": "train.learning_rate", "num_epochs": "train.num_train_epochs",
    "micro_batch_size": "train.per_device_train_batch_size", "num_generations": "rollouts.answers",
    "num_iterations": "rollouts.passes", "steps_per_generation": "rollouts.steps",
    "max_completion_length": "rollouts.max_new_tokens", "reward_funcs": "rollouts.reward",
}  # fmt: skip


def _canonical(key: str) -> str:
    """The dotted place of a key that stands at the top level."""
    if key in ALIASES:
        return ALIASES[key]
    if key in TrainSettings.model_fields:
        return f"train.{key}"
    return key


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for part in path:
        below = tree.get(part)
        if isinstance(below, str):  # `tuner: lora` is short for `tuner: {name: lora}`
            below = {_short(part): below}
        tree[part] = below = {} if below is None else below
        tree = below
    tree[last] = value


def nested(told: Mapping[str, Any]) -> dict[str, Any]:
    """A section whose keys may be dotted, as those of flags are: {"choose.top_p": 0.9} is {"choose": {"top_p": 0.9}}."""
    tree: dict[str, Any] = {}
    for key in sorted(told, key=lambda k: k.count(".")):
        _put(tree, key, told[key])
    return tree


def _short(section: str) -> str:
    return {"model": "model_name_or_path", "data": "train", "stability": "mode", "audit": "data"}.get(section, "name")


def with_overrides(told: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping with dotted keys put in: {"edit.share": 0.2}."""
    out = {k: dict(v) if isinstance(v, dict) else v for k, v in told.items()}
    for key, value in overrides.items():
        _put(out, key, value)
    return out


def _expand(value: Any) -> Any:
    """`${NAME}` to the environment's value; unset names are errors."""
    if isinstance(value, str):

        def look(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise ConfigError(f"environment variable {match[1]} is not set (used as '{value}')")
            return os.environ[match[1]]

        return re.sub(r"\$\{(\w+)\}", look, value)
    if isinstance(value, dict):
        return {k: _expand(v) for k, v in value.items()}
    return [_expand(v) for v in value] if isinstance(value, list) else value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError naming the file, and the line where there is one."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe file")
    try:
        told = yaml.load(path.read_text(encoding="utf-8"), _NoRepeats)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(told, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys, not {type(told).__name__}")
    return told


def recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a file or a mapping, with dotted or flat overrides on top. Raises ConfigError."""
    if isinstance(source, Recipe):
        if not overrides:
            return source
        source = source.model_dump(exclude_unset=True)
    where = str(source) if isinstance(source, str | Path) else "recipe"
    told = read_yaml(source) if isinstance(source, str | Path) else dict(source)
    tree: dict[str, Any] = {}
    for key, value in told.items():
        if _canonical(key) == key:
            _put(tree, key, dict(value) if isinstance(value, dict) else value)
    for key, value in told.items():
        dotted = _canonical(key)
        if dotted != key:
            if _get(tree, dotted) is not None:
                raise ConfigError(f"{where}: '{key}' and '{dotted}' say the same thing: remove one of the two")
            _put(tree, dotted, value)
    for key, value in (overrides or {}).items():
        _put(tree, _canonical(key), value)
    tree = _expand(tree)
    for section in ("model", "data", "stability", *(key for _, key in SECTIONS)):
        if isinstance(tree.get(section), str | list):
            tree[section] = {_short(section): tree[section]}
    try:
        made = Recipe.model_validate(tree)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except ValidationError as error:
        raise ConfigError(_explain(error, where, None)) from None
    _check_sections(made, where)
    return made


def audit_settings(told: Any) -> AuditSettings:
    """The section `evaluate.audit` alone: a mapping, a YAML file with its keys, or the name of its data. Raises ConfigError."""
    where = "audit"
    if isinstance(told, str | Path) and str(told).endswith((".yaml", ".yml")):
        where, told = str(told), read_yaml(told)
    try:
        return AuditSettings.model_validate(_by_data(_expand(told)))
    except ValidationError as error:
        raise ConfigError(_explain(error, where, list(AuditSettings.model_fields))) from None


def _get(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _check_sections(made: Recipe, where: str) -> None:
    """Names and options of methods are checked when the recipe is read, by their files' headers alone."""
    for axis, key in SECTIONS:
        if getattr(made, key) is None:
            continue
        name = getattr(made, key).get("name")
        if name is None:
            raise ConfigError(f"{where}: {key}.name is missing")
        try:
            catalog.entry(axis, name)
        except catalog.UnknownMethod as error:
            raise ConfigError(f"{where}: {key}: {error}") from None


def _valid_names(location: Iterable[Any]) -> list[str]:
    model: Any = Recipe
    for part in location:
        info = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = info.annotation if info is not None else None
    if model is Recipe:
        return [*Recipe.model_fields, *TrainSettings.model_fields, *ALIASES]
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def _explain(error: ValidationError, where: str, fields: list[str] | None) -> str:
    """The first problem of a validation error as one line with the fix."""
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    found = error.errors()
    first = next((e for e in found if e["type"] in unknown), found[0])  # a misspelt key is also one that is missing
    path = ".".join(str(p) for p in first["loc"])
    if first["type"] in unknown:
        key = str(first["loc"][-1])
        valid = fields if fields is not None else _valid_names(first["loc"][:-1])
        near = difflib.get_close_matches(key, valid, 1, 0.5)
        hint = f": did you mean '{near[0]}'?" if near else f" (valid: {', '.join(sorted(valid))})"
        return f"{where}: unknown key '{path}'{hint}"
    if first["type"] == "missing":
        return f"{where}: '{path}' is missing"
    if first["type"] == "value_error":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    return f"{where}: {path}: {first['msg'][0].lower() + first['msg'][1:]} (got {first['input']!r})"


def parse_flags(words: list[str]) -> dict[str, Any]:
    """`--train.learning_rate 1e-4 --bf16 --seed=3` to a mapping of dotted keys. Raises ConfigError."""
    out: dict[str, Any] = {}
    i = 0
    while i < len(words):
        word = words[i]
        if not word.startswith("--"):
            raise ConfigError(f"'{word}' is not a flag: write --key value")
        key, eq, value = word[2:].partition("=")
        if not eq:
            if i + 1 < len(words) and not words[i + 1].startswith("--"):
                i += 1
                value = words[i]
            else:
                value = "true"
        dotted = key.replace("-", "_")
        out[dotted] = yaml.load(value, _NoRepeats)
        i += 1
    return out


def schema() -> dict[str, Any]:
    """JSON schema of a recipe."""
    return Recipe.model_json_schema()
