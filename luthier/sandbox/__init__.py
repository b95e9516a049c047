"""The sandbox: small worlds with exact ground truth, one tokenizer, and four nano models pretrained on them.

What a nano model saw in pretraining is known exactly, so claims about memory, forgetting, refusal or quoting can be
tested. Importing this package is light: neither torch nor transformers is loaded before `tokenizer` or `load` is
called.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luthier.sandbox.worlds  # noqa: F401  first, so that the function below, not the folder, keeps the name `worlds`
from luthier.sandbox.world import Row, World, documents, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WEIGHTS = Path(__file__).parent / "weights"
VOCABULARY = Path(__file__).parent / "vocabulary"
_AUTO = {"encoder": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM"}


@cache
def worlds() -> dict[str, World]:
    """All worlds by name, found by the file names of the `worlds` folder."""
    found: dict[str, World] = {}
    for path in sorted((Path(__file__).parent / "worlds").glob("[!_]*.py")):
        module = importlib.import_module(f"{__name__}.worlds.{path.stem}")
        classes = [
            c
            for _, c in inspect.getmembers(module, inspect.isclass)
            if issubclass(c, World) and c.__module__ == module.__name__
        ]
        if len(classes) != 1 or classes[0].name != path.stem:
            raise ImportError(f"{path.name} must hold exactly one World, named '{path.stem}'")
        found[path.stem] = classes[0]()
    return found


def mixture() -> dict[str, World]:
    """The worlds that pretraining documents come from; the others have share 0."""
    return {name: found for name, found in worlds().items() if found.share}


def world(name: str) -> World:
    """One world by name."""
    if name not in worlds():
        raise ValueError(nearest("world", name, list(worlds())))
    return worlds()[name]


def rows(which: str | World, **options: Any) -> list[Row]:
    """Rows of a world: `rows("sequence", task="mix", part="named", split="train", n=300)`.

    `which` is a world, its name, or a path `world/task/part`; options are those of `World.rows`.
    """
    if isinstance(which, World):
        return which.rows(**options)
    name, *rest = which.split("/")
    if len(rest) > 2:
        raise ValueError(f"'{which}' is not world, world/task or world/task/part")
    return world(name).rows(**dict(zip(("task", "part"), rest, strict=False)) | options)


def corpus(n: int, seed: int = 0, start: int = 0) -> Iterator[tuple[str, str]]:
    """`n` pretraining documents (world name, text) from number `start` on; each depends on seed and number alone."""
    for number, chosen in documents(mixture(), seed, start):
        if number >= start + n:
            return
        yield chosen.name, chosen.document(random.Random(f"{seed}/document/{number}"))


def model_names() -> list[str]:
    """Models whose weights are here."""
    return sorted(p.parent.name for p in WEIGHTS.glob("*/config.json"))


def model_path(name: str) -> Path:
    """The folder of a nano model: an ordinary transformers folder."""
    if name not in model_names():
        raise ValueError(nearest("nano model", name, model_names()))
    return WEIGHTS / name


def tokenizer() -> PreTrainedTokenizerFast:
    """The sandbox tokenizer, as the causal models use it; `load` gives the one of a model."""
    from transformers import AutoTokenizer

    found: Any = AutoTokenizer.from_pretrained(VOCABULARY)
    return found


def load(name: str, path: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A nano model in float32, in eval mode, with its tokenizer; `path` reads it from another folder."""
    import torch
    import transformers
    from transformers import AutoTokenizer

    path = path or model_path(name)
    auto = getattr(transformers, next((a for key, a in _AUTO.items() if key in name), "AutoModelForCausalLM"))
    tok: Any = AutoTokenizer.from_pretrained(path)
    return auto.from_pretrained(path, dtype=torch.float32).eval(), tok
