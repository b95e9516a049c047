"""`luthier edit`: change weights without training, by a method of the edits axis.

Tensors go from the files of the checkpoints to those of the result one at a time. What is loaded whole is the first model,
for edits that ask data, and the result, for the check at the end (`check: false` leaves it out).
"""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.core import config, runs
from luthier.core.config import ConfigError, build
from luthier.core.delta import save_delta
from luthier.core.method import Edit, LuthierError
from luthier.core.probe import Probe, probe_of
from luthier.core.shards import ADAPTER, WEIGHTS, Shards, same_make, write_like
from luthier.verbs._probes import MergeCheck, ask, compare, divergence
from luthier.verbs.load import AUTO, Loaded, _task_of, calm, load, weights_folder

KEYS = ("name", "edit", "models", "base_model", "data", "objective", "output_dir", "check", "save_delta", "seed")
KEPT = (
    "config.json", "generation_config.json", "adapter_config.json", "labels.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "preprocessor_config.json", "processor_config.json", "*.model", "*.tiktoken",
)  # fmt: skip
"""Files of the first checkpoint that belong to the result as well."""
SHAPE = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings")
"""Settings that models of one architecture share, beyond the shapes of their tensors."""


@dataclass
class Edited:
    """An edited checkpoint: its folder, what the method found on the way, and the check of what was written."""

    folder: Path
    found: dict[str, Any]
    check: MergeCheck | None

    def load(self) -> Loaded:
        return load(str(self.folder))


def edit(
    recipe: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Edited:
    """Apply `edit` to the weights of `models` and write a model folder, or an adapter folder, to `output_dir`.

    The first model gives names, dtypes, configuration and tokenizer. Adapters are merged into their base first, unless the
    edit is for adapters. `base_model` is one more model behind the others; `data` and `objective`, as in a recipe of a run,
    are for edits that ask data; `save_delta: true` writes what moved against the last model in place of the whole.
    Raises ConfigError and LuthierError; nothing is written unless the edit succeeds.
    """
    where, told = _told(recipe, overrides)
    method = build("edits", told["edit"] if isinstance(told["edit"], dict) else {"name": told["edit"]}, "edit")
    models = [str(m) for m in (*told["models"], *([told["base_model"]] if told.get("base_model") else []))]
    method.check(len(models))
    target = Path(told["output_dir"]).expanduser()
    _free(target, models)
    if "data" in method.needs and not told.get("data"):
        raise ConfigError(f"{where}: '{method.name}' asks data: give the key 'data'")
    with ExitStack() as stack, calm():
        shards = [_opened(m, method, target, stack) for m in models]
        for name, other in zip(models[1:], shards[1:], strict=True):
            same_make(shards[0], other, (models[0], name))
            _same_words(shards[0].folder, other.folder, (models[0], name))
        model, probe = _given(method, told, models[0], shards[0], say)
        plan = method.plan(shards, model, probe)
        done = Edited(target, {}, None)

        def fill(part: Path) -> None:
            first = shards[0]
            for pattern in KEPT:
                for file in first.folder.glob(pattern):
                    shutil.copyfile(file, part / file.name)
            write_like(first, part, method.stream(shards, plan))
            done.found = method.found(plan)
            if told.get("check", True):
                done.check = _checked(part, target, models[0])
            if told.get("save_delta"):
                _as_delta(part, models[-1])
            runs.write_json(
                part / "edit.json", {**told, "found": done.found, "versions": runs.versions(), "git": runs.git()}
            )

        runs.write_folder(target, fill)
    return done


# -------------------------------------------------------------------------------------------------- before


def _told(recipe: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    where = str(recipe) if isinstance(recipe, str | Path) else "recipe"
    told = config.with_overrides(
        config.read_yaml(recipe) if isinstance(recipe, str | Path) else recipe, overrides or {}
    )
    for key in told:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise ConfigError(
                f"{where}: unknown key '{key}'" + (f": did you mean '{near[0]}'?" if near else f" ({', '.join(KEYS)})")
            )
    for key in ("edit", "models", "output_dir"):
        if key not in told:
            raise ConfigError(f"{where}: '{key}' is missing")
    if isinstance(told["models"], str):
        told["models"] = [told["models"]]
    return where, told


def _free(target: Path, models: Sequence[str]) -> None:
    """Raises LuthierError where writing to `target` would take away a checkpoint that is read, or something else."""
    if any(Path(m).expanduser().resolve() == target.resolve() for m in models):
        raise LuthierError(f"{target}: output_dir is one of the models: choose another folder")
    if not runs.replaceable(target):
        raise LuthierError(f"{target}: this is there already and no model folder: choose another output_dir")


def _opened(name: str, method: Edit, target: Path, stack: ExitStack) -> Shards:
    """The files of a checkpoint; what has none of its own (merged adapters, other formats) is written to a temporary folder."""
    found = weights_folder(name)
    if found and found[1] == ADAPTER and "adapter" in method.capabilities:
        return Shards(*found)
    if found and found[1] == WEIGHTS:
        out = Shards(*found)
        if not method.needs or set(out) <= set(_bare(out.folder).state_dict()):
            return out
    loaded = load(name)
    if hasattr(loaded.model, "merge_and_unload"):
        loaded.model = merged(loaded)
    with runs.or_refuse(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=runs.TEMPORARY, dir=target.parent))
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return Shards(folder)


def merged(loaded: Loaded) -> Any:
    """The model with its adapter in the weights. Raises Refusal where the adapter is not linear in them."""
    from luthier.core.method import Refusal

    try:
        return loaded.model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError) as error:
        raise Refusal(
            f"{loaded.name}: this adapter type cannot be merged: ship the base and the adapter folder"
        ) from error
    except ValueError as error:  # numbers that are not finite
        raise LuthierError(
            f"{loaded.name}: merging it gives NaN or infinity, so nothing was written: look at the adapter and at its base"
        ) from error


def _bare(folder: Path) -> nn.Module:
    """The model of a folder without its weights: names, shapes and parts."""
    import transformers

    settings = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return getattr(transformers, AUTO[_task_of(settings)]).from_config(settings)


def _same_words(first: Path, other: Path, names: tuple[str, str]) -> None:
    """Raises LuthierError where settings or vocabularies of two checkpoints differ."""
    from transformers import AutoConfig, AutoTokenizer

    both = [AutoConfig.from_pretrained(f) if (f / "config.json").is_file() else None for f in (first, other)]
    for key in SHAPE if all(both) else ():
        a, b = (getattr(c, key, None) for c in both)
        if a != b:
            raise LuthierError(
                f"these checkpoints are not of one architecture: {key} is {a} in {names[0]}, {b} in {names[1]}"
            )
    if all((f / "tokenizer_config.json").is_file() for f in (first, other)):
        a, b = (AutoTokenizer.from_pretrained(f).get_vocab() for f in (first, other))
        if a != b:
            word = min(w for w, _ in a.items() ^ b.items())
            raise LuthierError(
                f"the vocabularies of {names[0]} and {names[1]} differ: '{word}' has id {a.get(word)} and {b.get(word)}: "
                "rows of their embeddings do not belong together"
            )


def _given(
    method: Edit, told: Mapping[str, Any], name: str, first: Shards, say: Callable[[str], None]
) -> tuple[nn.Module | None, Probe | None]:
    """What the method needs besides weights: the architecture, or the first model and data."""
    if "data" in method.needs:
        from luthier.core.loop import Collator
        from luthier.verbs.run import prepare

        run = {k: told[k] for k in ("data", "objective", "seed") if k in told}
        ready = prepare(config.recipe({"model": name, "evaluate": {"drift": False}, **run}), say)
        model = ready.loaded.model
        if hasattr(model, "merge_and_unload") and "adapter" not in method.capabilities:
            model = merged(ready.loaded)
        start = getattr(model.config, "decoder_start_token_id", None) or 0
        collate = Collator(ready.loaded.tokenizer.pad_token_id, start)
        return model, probe_of(model, ready.objective, ready.train.examples, collate)
    if "architecture" in method.needs:
        return (load(name).model if first.weights == ADAPTER else _bare(first.folder)), None
    return None, None


# --------------------------------------------------------------------------------------------------- after


def _checked(part: Path, target: Path, name: str) -> MergeCheck:
    """The written folder, read back, against the first model with the new numbers put in by hand. Raises Differs."""
    written = Shards(part, ADAPTER if (part / ADAPTER).is_file() else WEIGHTS)
    wanted = load(name)
    if written.weights == WEIGHTS and hasattr(wanted.model, "merge_and_unload"):
        wanted.model = merged(wanted)
    was = ask(wanted)
    _put_in(wanted.model, written)
    before = ask(wanted)
    del wanted
    again = load(str(part))
    if again.new:
        raise LuthierError(f"{target}: '{again.new[0]}' is not in the files that were written: nothing was written")
    check = compare(str(target), before, ask(again), torch.float32)  # both hold the very numbers that were written
    check.kl = divergence(was, before)
    check.demand()
    return check


@torch.no_grad()
def _put_in(model: nn.Module, written: Shards) -> None:
    """Copy tensors of files into the model that they are for."""
    if written.weights == ADAPTER:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, dict(written.items()))
        return
    own = model.state_dict()
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name, tensor in written.items():
        place = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in own), None)
        if place is not None:
            own[place].copy_(tensor)


def _as_delta(part: Path, base: str) -> None:
    """Replace the weights in a folder by what moved against `base`."""
    loaded, plain = load(str(part)), load(base)
    save_delta(
        part, plain.model, loaded.model, name=base, task=loaded.task, new=plain.new,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
    )  # fmt: skip
    for file in Shards(part).files:
        file.unlink()
    (part / "config.json").unlink()


def report(done: Edited) -> str:
    """What a reader wants to know, in lines."""
    lines = [f"{k}: {v}" for k, v in done.found.items() if isinstance(v, int | float | str)]
    if skipped := done.found.get("skipped"):
        lines.append(f"left as they were, since no row passes them: {', '.join(skipped)}")
    return "\n".join([*lines, done.check.text() if done.check else f"{done.folder}: not checked"])
