"""A saved delta: what moved against a base, as places and values where that is smaller and whole tensors where it is not.

    tuned[i] = value   for the places i of a tensor that moved, the base elsewhere

    <folder>/delta.safetensors   "<name>" whole tensors;  "<name>#at", "<name>#to" places (int32) and values
    <folder>/delta.json          format, base (name and hash), task, new, tensors: name -> shape, dtype, kind, moved

Elements are compared bit by bit, so that base + delta is the tuned model to the last bit, and taking the delta off is the
base again. The hash is over the base's tensors except those in `new`: tensors that the base's files do not hold (a new
task head, a new pooler), which differ whenever the base is loaded; they are stored whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core.method import LuthierError
from luthier.core.runs import hash_tensors

TENSORS, ABOUT = "delta.safetensors", "delta.json"
FORMAT = 1
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_delta(folder: Path) -> bool:
    return (folder / ABOUT).is_file()


def base_hash(model: nn.Module, new: Iterable[str] = ()) -> str:
    """sha256 over the tensors of a base model, without those named in `new`."""
    skip = set(new)
    return hash_tensors((n, t) for n, t in model.state_dict().items() if n not in skip)


def save_delta(
    folder: Path, base: nn.Module, tuned: nn.Module, *, name: str, task: str, new: Iterable[str] = (), **about: Any
) -> dict[str, Any]:
    """Write what moved from `base` to `tuned` (models of the same names and shapes); what delta.json holds.

    name, task  how the base is found again;  new  tensors that the base's files do not hold
    """
    new = sorted(new)
    before, after = _own(base), _own(tuned)
    odd = sorted((n, t.shape) for n, t in before.items() if n not in after or after[n].shape != t.shape)
    if odd or len(before) != len(after):
        raise LuthierError(
            f"a delta needs the base's own tensors: '{odd[0][0] if odd else 'more'}' differs in name or shape"
        )
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for key, value in after.items():
        moved = _moved(before[key], value)
        if not len(moved) and key not in new:
            continue
        at = moved.to(torch.int32 if value.numel() < 2**31 else torch.int64)
        sparse = (
            key not in new
            and len(at) * (at.element_size() + value.element_size()) < value.numel() * value.element_size()
        )
        if sparse:
            tensors |= {f"{key}#at": at, f"{key}#to": value.flatten()[moved].clone()}
        else:
            tensors[key] = value.clone()
        told[key] = {
            "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."),
            "kind": "sparse" if sparse else "dense", "moved": len(moved),
        }  # fmt: skip
    known = {"name": name, "sha256": base_hash(base, new)}
    out = {"format": FORMAT, "base": known, "task": task, "new": new, **about, "tensors": told}
    save_file(tensors, folder / TENSORS)
    (folder / ABOUT).write_text(json.dumps(out, indent=1), encoding="utf-8")
    return out


def read_about(folder: Path) -> dict[str, Any]:
    """What delta.json holds. Raises LuthierError where there is none or a later version wrote it."""
    if not is_delta(folder):
        raise LuthierError(f"{folder}: no {ABOUT}: this is not a delta folder")
    told = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if told["format"] > FORMAT:
        raise LuthierError(f"{folder}: format {told['format']} of a delta is newer than this luthier reads ({FORMAT})")
    return told


@dataclass
class Applied:
    """A delta that is on a model. `remove` puts the base back, to the last bit."""

    model: nn.Module
    about: dict[str, Any]
    before: Mapping[str, tuple[Tensor | None, Tensor]]

    @torch.no_grad()
    def remove(self) -> None:
        own = _own(self.model, copies=False)
        for name, (at, old) in self.before.items():
            _put(own[name], at, old)
        self.before = {}


@torch.no_grad()
def apply_delta(model: nn.Module, folder: Path) -> Applied:
    """Put a delta on its base, in place. Raises LuthierError, and changes nothing, where `model` is another base."""
    told = read_about(folder)
    found = base_hash(model, told["new"])
    if found != told["base"]["sha256"]:
        raise LuthierError(
            f"{folder}: this delta belongs to another base than the one given: it was made on '{told['base']['name']}' "
            f"({told['base']['sha256'][:12]}), this is {found[:12]} (another model, version or dtype)"
        )
    tensors = load_file(folder / TENSORS)
    own = _own(model, copies=False)
    before: dict[str, tuple[Tensor | None, Tensor]] = {}
    for name, about in told["tensors"].items():
        if name not in own or list(own[name].shape) != about["shape"]:
            raise LuthierError(f"{folder}: tensor '{name}' {about['shape']} has no place in this model")
    for name, about in told["tensors"].items():
        target = own[name]
        sparse = about["kind"] == "sparse"
        at = tensors[f"{name}#at"].long().to(target.device) if sparse else None
        before[name] = (at, (target if at is None else target.flatten()[at]).detach().clone())
        _put(target, at, tensors[f"{name}#to" if sparse else name])
    return Applied(model, told, before)


def _put(target: Tensor, at: Tensor | None, value: Tensor) -> None:
    if at is None:
        target.copy_(value)
    else:
        target.data.view(-1)[at] = value.to(target.device)


def _own(model: nn.Module, copies: bool = True) -> dict[str, Tensor]:
    """Parameters and saved buffers, each tensor once; by default on the CPU."""
    saved = set(model.state_dict())
    named = {n: t for n, t in (*model.named_parameters(), *model.named_buffers()) if n in saved}
    return {n: t.detach().cpu().contiguous() for n, t in named.items()} if copies else dict(named)


def _moved(a: Tensor, b: Tensor) -> Tensor:
    """Flat places at which two tensors differ in any bit."""
    bits = BITS[a.element_size()]
    return (a.flatten().view(bits) != b.flatten().view(bits)).nonzero().flatten()
