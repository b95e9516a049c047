"""Load a model by name: an embedded one, a folder, a run, an adapter or delta folder, or a hub id."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.config import ModelSettings
from luthier.core.delta import Applied, apply_delta, is_delta, read_about
from luthier.core.method import HEADED, Decoder, LuthierError
from luthier.core.mixture import Other
from luthier.core.quantise import held, hold
from luthier.core.runs import hash_tensors
from luthier.core.shards import ADAPTER, WEIGHTS, Shards
from luthier.core.subject import Subject

AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "masked_lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "embedding": "AutoModel",
}


TASKS = {"SEQ_CLS": "classification", "TOKEN_CLS": "token_classification", "FEATURE_EXTRACTION": "embedding"}
"""What the heads of adapter folders are called there."""


@dataclass
class Loaded:
    """A model ready to tune or to ask.

    model      transformers model, or PeftModel where `name` is an adapter folder or a run that made one
    tokenizer  its tokenizer
    task       head: "causal_lm", "seq2seq_lm", "masked_lm", "classification", "token_classification", or "embedding" for none
    name       what it was loaded by;  path  folder or hub id that transformers read
    new        names of tensors that its files do not hold (a new task head)
    delta      the delta that is on it, where `name` is a delta folder or a run that made one
    """

    model: Any
    tokenizer: Any
    task: str
    name: str
    path: str
    new: tuple[str, ...] = ()
    delta: Applied | None = None

    def subject(self, decoder: Any = None, seed: int = 0) -> Subject:
        """The model as something that can be asked questions. Models that the decoder names are loaded beside it."""
        if decoder is not None:
            decoder = decoder.for_models(self.beside, self.tokenizer)
        return Subject(
            self.model, self.tokenizer, task=self.task, decoder=decoder, name=self.name, seed=seed, beside=self.beside
        )

    def beside(self, told: Any) -> Other:
        """Another model of the same kind and on the same device, by name or by a mapping of model settings."""
        settings = told if isinstance(told, str) else ModelSettings.model_validate(dict(told))
        found = load(settings, self.task)
        device = next(self.model.parameters()).device
        return Other(found.model.eval().to(device), found.tokenizer, found.name)

    def manifest(self) -> dict[str, Any]:
        parameters = sum(p.numel() for p in self.model.parameters()) + held(self.model)[0]
        return {"name": self.name, "sha256": hash_tensors(self.model.state_dict().items()), "parameters": parameters}


def load(
    model: str | Path | ModelSettings,
    task: str = "auto",
    num_labels: int | None = None,
    label_names: list[str] | None = None,
    problem_type: str | None = None,
    control: str | Mapping[str, float] | None = None,
) -> Loaded:
    """Load `model` for `task`. Raises LuthierError with one line where it cannot be found or read.

    `model` may be an embedded name ("nano-1m"), a transformers folder, a llama2.c checkpoint (.bin), a luthier run, a peft
    adapter folder or a delta folder (their base is loaded too) or a hub id. `ModelSettings.adapter` puts an adapter or delta
    folder on the base that is named there. The next three describe a new task head; `problem_type` is transformers' word
    for what its labels are. `control` is that of the settings.
    """
    settings = model if isinstance(model, ModelSettings) else ModelSettings(model_name_or_path=str(model))
    if control is not None:
        settings = settings.model_copy(update={"control": control})
    task = settings.task if task == "auto" else task
    name = settings.model_name_or_path
    if settings.adapter and is_delta(Path(settings.adapter)):
        return _with_delta(settings, Path(settings.adapter), task)
    if settings.adapter:
        return _with_adapter(settings, Path(settings.adapter), task, num_labels, label_names, problem_type)
    path = _run_output(Path(name).expanduser())
    if (path / "adapter_config.json").exists():
        base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
        if not Path(base).exists() and Path(base).is_absolute() and (path.parent / Path(base).name).is_dir():
            base = str(path.parent / Path(base).name)  # a run folder that was moved with a model and a prompt for it
        found = settings.model_copy(update={"model_name_or_path": base, "adapter": str(path)})
        out = _with_adapter(found, path, task, num_labels, label_names, problem_type)
        out.name = name
        return out
    if is_delta(path):
        base = read_about(path)["base"]["name"]
        out = _with_delta(settings.model_copy(update={"model_name_or_path": base}), path, task)
        out.name = name
        return out
    if settings.control is not None:
        raise LuthierError(f"model '{name}' has no control '{settings.control}': name the folder of its controls")
    if path.suffix == ".bin" and path.is_file():
        out = _llama2c(settings, name, path, task)
    else:
        out = _plain(settings, name, path, task, num_labels, label_names, problem_type)
    if settings.quantised:
        hold(out.model, settings.quantised)
    return out


def _llama2c(settings: ModelSettings, name: str, path: Path, task: str) -> Loaded:
    """A llama2.c checkpoint, converted in memory."""
    import torch

    from luthier.core.llama2c import load_checkpoint

    if task not in ("auto", "causal_lm"):
        raise LuthierError(f"{path}: a llama2.c checkpoint has no {task} head: save it as a folder first")
    lm, tokenizer = load_checkpoint(path, settings.tokenizer)
    if settings.dtype not in ("auto", "float32"):
        lm = lm.to(getattr(torch, settings.dtype))
    if settings.attn_implementation:
        lm.set_attn_implementation(settings.attn_implementation)
    return Loaded(lm, tokenizer, "causal_lm", name, str(path.resolve()))


def weights_folder(name: str | Path) -> tuple[Path, str] | None:
    """The folder whose safetensors `load` would read, and the name of the file there; an adapter's own where it is one.

    A hub id is fetched, or found in the cache. None where the weights must be made first: a delta, another format.
    """
    folder = Path(_where(str(name), _run_output(Path(name).expanduser())))
    if not folder.exists() and str(folder).count("/") == 1:
        folder = _from_hub(str(folder))
    for file in (ADAPTER, WEIGHTS):
        if (folder / file).is_file() or (folder / f"{file}.index.json").is_file():
            return folder, file
    return None


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "model*.safetensors", ADAPTER]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise LuthierError(f"model '{name}' cannot be loaded: {_first_line(error)}") from error


def _run_output(path: Path) -> Path:
    """The tuned model inside a run folder, or `path` itself."""
    if (path / "run.json").exists():
        for kind in ("adapter", "model", "delta"):
            if (path / kind).is_dir():
                return path / kind
        status = json.loads((path / "run.json").read_text())["status"]
        raise LuthierError(f"{path}: this run holds no tuned model (its status is {status})")
    return path


def _plain(
    settings: ModelSettings, name: str, path: Path, task: str, num_labels: int | None, label_names: list[str] | None,
    problem_type: str | None,
) -> Loaded:  # fmt: skip
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    where = _where(name, path)
    common: dict[str, Any] = {"revision": settings.revision or "main", "trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(where, **common)
        task = _task_of(config) if task == "auto" else task
        if getattr(config, "is_encoder_decoder", False) and task == "causal_lm":
            task = "seq2seq_lm"
        if getattr(config, "is_encoder_decoder", False) and task == "token_classification":
            raise LuthierError(f"task {task} takes an encoder or a decoder, not an encoder-decoder: name another model")
        extra: dict[str, Any] = _bare(config) if task == "embedding" else {}
        if task in HEADED:
            extra["num_labels"] = num_labels or settings.num_labels or getattr(config, "num_labels", 2)
            if problem_type:
                extra["problem_type"] = problem_type
            if label_names:
                extra["id2label"] = dict(enumerate(label_names))
                extra["label2id"] = {n: i for i, n in enumerate(label_names)}
        if settings.attn_implementation:
            extra["attn_implementation"] = settings.attn_implementation
        dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
        with calm():
            model, info = getattr(transformers, AUTO[task]).from_pretrained(
                where, dtype=dtype, output_loading_info=True, **extra, **common
            )
        tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer or where, **common)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise LuthierError(f"model '{name}' cannot be loaded: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:  # padding is masked by length, never by id, so any id serves
        tokenizer.pad_token = tokenizer.eos_token
    if task == "classification" and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    new = set(info["missing_keys"])
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
        tables = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
        new |= {
            n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in tables
        }  # its new rows are drawn
    return Loaded(model, tokenizer, task, name, where, tuple(sorted(new)))


def _where(name: str, path: Path) -> str:
    from luthier import sandbox

    if name in sandbox.model_names():
        return str(sandbox.model_path(name))
    if path.is_dir() or ("/" in name and not path.parent.is_dir()):
        return str(path) if path.is_dir() else name
    near = difflib.get_close_matches(name, sandbox.model_names(), 1)
    if near and not path.exists():
        raise LuthierError(f"model '{name}' is not known: did you mean '{near[0]}'?")
    return name


def _bare(config: Any) -> dict[str, Any]:
    """How a model without a head is read: a pooler is a head that final states do not pass through."""
    import inspect

    if getattr(config, "is_encoder_decoder", False):
        raise LuthierError("task embedding takes an encoder or a decoder, not an encoder-decoder: name another model")
    takes = inspect.signature(_bare_class(config).__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def _bare_class(config: Any) -> Any:
    """The class of a model of this configuration without a head."""
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _task_of(config: Any) -> str:
    names = " ".join(config.architectures or [])
    for ending, task in (
        ("SequenceClassification", "classification"),
        ("TokenClassification", "token_classification"),
        ("MaskedLM", "masked_lm"),
        ("ConditionalGeneration", "seq2seq_lm"),
    ):
        if ending in names:
            return task
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq_lm"
    return "embedding" if names.endswith("Model") and names == _bare_class(config).__name__ else "causal_lm"


def _with_adapter(
    settings: ModelSettings, adapter: Path, task: str, num_labels: int | None, label_names: list[str] | None,
    problem_type: str | None,
) -> Loaded:  # fmt: skip
    from peft import PeftModel
    from safetensors import SafetensorError

    from luthier.tuners._controls import choose_control  # with it all of luthier's adapter types are registered

    told = (
        json.loads((adapter / "adapter_config.json").read_text())
        if (adapter / "adapter_config.json").exists()
        else None
    )
    if told is None:
        raise LuthierError(f"{adapter}: no adapter_config.json: this is not an adapter folder")
    if task == "auto":
        task = TASKS.get(told.get("task_type"), task)
    if task in HEADED and num_labels is None:
        num_labels, label_names, problem_type = _head_labels(adapter)
    plain = settings.model_copy(update={"adapter": None, "control": None})
    base = load(plain, task, num_labels, label_names, problem_type)
    try:
        base.model = PeftModel.from_pretrained(base.model, str(adapter), is_trainable=False)
    except SafetensorError as error:
        raise LuthierError(f"{adapter}: its weights cannot be read: {_first_line(error)}") from error
    except (KeyError, RuntimeError, ValueError) as error:
        raise LuthierError(f"{adapter}: this adapter does not fit '{base.name}': {_first_line(error)}") from error
    _all_used(base, adapter)
    if settings.control is not None:
        choose_control(base.model, settings.control)
    base.path = str(adapter)
    return base


def _all_used(loaded: Loaded, adapter: Path) -> None:
    """Raises LuthierError where the adapter holds tensors that its base has no place for, which peft leaves out in silence."""
    from peft import get_peft_model_state_dict

    if (adapter / ADAPTER).is_file():
        odd = sorted(Shards(adapter, ADAPTER).keys() - get_peft_model_state_dict(loaded.model).keys())
        if odd:
            raise LuthierError(
                f"{adapter}: this adapter does not fit '{loaded.name}', which has no place for '{odd[0]}'"
            )


def _with_delta(settings: ModelSettings, folder: Path, task: str) -> Loaded:
    """A base with a delta on it. The base is read in the dtype that the delta was made in, and converted afterwards."""
    from transformers import AutoTokenizer

    told = read_about(folder)
    labels = _head_labels(folder)
    wanted = settings.dtype if "dtype" in settings.model_fields_set else told["dtype"]
    whole = {"load_in_4bit": False, "load_in_8bit": False}
    plain = settings.model_copy(update={"adapter": None, "dtype": told["dtype"], **whole})
    out = load(plain, told["task"] if task == "auto" else task, *labels)
    out.delta = apply_delta(out.model, folder)
    if wanted not in ("auto", told["dtype"]):
        import torch

        out.model = out.model.to(getattr(torch, wanted))
    if settings.quantised:
        hold(out.model, settings.quantised)
    if settings.tokenizer is None and (folder / "tokenizer_config.json").exists():
        out.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        if out.tokenizer.pad_token_id is None:
            out.tokenizer.pad_token = out.tokenizer.eos_token
    out.path = str(folder)
    return out


def _head_labels(adapter: Path) -> tuple[int | None, list[str] | None, str | None]:
    """Outputs of a head, class names, and what kind of labels they are, that a run wrote beside its adapter."""
    file = adapter / "labels.json"
    told = json.loads(file.read_text()) if file.exists() else None
    if told is None:
        return None, None, None
    names = told["names"]
    return told.get("outputs") or len(names), names, told["problem_type"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class calm:
    """Silences transformers' progress bars, its notice about new heads (the run reports them) and its future warnings."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.level = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|accelerate|torch")

    def __exit__(self, *error: object) -> None:
        from transformers.utils import logging

        self.caught.__exit__(None, None, None)
        logging.set_verbosity(self.level)
        logging.enable_progress_bar()


def decoder_of(told: Mapping[str, Any] | str | Decoder) -> Decoder:
    """A decoding method from a recipe section or its name; options of a method inside it may be dotted, as flags are."""
    from luthier.core.config import build, nested

    if isinstance(told, Decoder):
        return told
    found: Decoder = build("decoding", nested({"name": told} if isinstance(told, str) else told), "decoding")
    return found
