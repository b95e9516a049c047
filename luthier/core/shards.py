"""Weights in safetensors files, read and written one tensor at a time: memory is that of a few tensors, whatever the model.

    <folder>/model.safetensors, or model.safetensors.index.json and the shards that it names

Tensors are read by their place in the file rather than mapped into memory: mapped pages count as memory of the process
until the system takes them back. A file is a length (8 bytes), a header in JSON, and the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from luthier.core.method import LuthierError

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_LONGEST_HEADER = 100 * 2**20
PIECE = 2**18
"""Numbers of a flat piece of a tensor: few enough to stay in a cache, many enough that a call costs nothing beside them."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is: its file, first byte there, dtype and shape."""

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Shards(Mapping[str, Tensor]):
    """The tensors of a folder by name, in the order of the files; each is read when it is asked for.

    Raises LuthierError where a file is missing, truncated or no safetensors file.
    """

    def __init__(self, folder: str | Path, weights: str = WEIGHTS):
        self.folder, self.weights = Path(folder), weights
        self.index = self.folder / f"{weights}.index.json"
        self.piece = PIECE
        self.places: dict[str, Place] = {}
        self.headers: dict[str, bytes] = {}
        wanted = json.loads(self.index.read_text(encoding="utf-8"))["weight_map"] if self.index.is_file() else {}
        for file in dict.fromkeys(wanted.values()) or (weights,):
            self._open(self.folder / file)
        for name in wanted.keys() - self.places.keys():
            raise LuthierError(f"{self.folder / wanted[name]}: '{name}' is missing, though {self.index.name} names it")

    def _open(self, file: Path) -> None:
        try:
            size = file.stat().st_size
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                    raise LuthierError(f"{file}: truncated, or no safetensors file: fetch it again")
                raw = stream.read(length)
            told = json.loads(raw)
        except FileNotFoundError:
            raise LuthierError(f"{file}: no such file: weights are read from safetensors files") from None
        except (OSError, ValueError) as error:
            raise LuthierError(f"{file}: cannot be read as safetensors ({error}): fetch it again") from error
        self.headers[file.name] = length.to_bytes(8, "little") + raw
        told.pop("__metadata__", None)
        for name, one in sorted(told.items(), key=lambda kv: kv[1]["data_offsets"]):
            if one["dtype"] not in DTYPES:
                raise LuthierError(f"{file}: '{name}' is of type {one['dtype']}, which luthier does not read")
            place = Place(file, 8 + length + one["data_offsets"][0], DTYPES[one["dtype"]], tuple(one["shape"]))
            if place.start + place.bytes > size:
                raise LuthierError(f"{file}: truncated: it ends before the end of '{name}': fetch it again")
            self.places[name] = place

    def __contains__(self, name: object) -> bool:  # a Mapping's own would read the tensor
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, name: str) -> Tensor:
        place = self.places[name]
        out = torch.empty(place.shape, dtype=place.dtype)
        with place.file.open("rb", buffering=0) as stream:
            stream.seek(place.start)
            _fill(stream, out, name, place.file)
        return out

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The tensor in order, as flat tensors of at most `piece` numbers."""
        place = self.places[name]
        left = math.prod(place.shape)
        with place.file.open("rb", buffering=0) as stream:
            stream.seek(place.start)
            while left:
                out = torch.empty(min(left, self.piece), dtype=place.dtype)
                _fill(stream, out, name, place.file)
                left -= len(out)
                yield out

    @property
    def files(self) -> list[Path]:
        """All files that hold the weights, the index too."""
        return [self.folder / f for f in self.headers] + ([self.index] if self.index.is_file() else [])


def make(state: Mapping[str, Tensor], name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of a tensor, without reading it."""
    one = state.places[name] if isinstance(state, Shards) else state[name]
    return tuple(one.shape), one.dtype


def pieces(states: Sequence[Mapping[str, Tensor]], name: str) -> Iterator[tuple[Tensor, ...]]:
    """The tensor `name` of several checkpoints, piece by piece side by side; one piece where it is in memory."""
    return zip(*(s.pieces(name) if isinstance(s, Shards) else (s[name],) for s in states), strict=True)


def write_like(like: Shards, folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write `tensors`, given in the order, shapes and dtypes of `like`, into files of the same names and headers.

    A tensor may come in flat pieces, one after another under its name.
    """
    if like.index.is_file():
        (folder / like.index.name).write_bytes(like.index.read_bytes())
    out: BinaryIO | None = None
    now = ""
    try:
        for name, parts in groupby(tensors, lambda item: item[0]):
            place, wanted = like.places[name], math.prod(like.places[name].shape)
            if place.file.name != now:
                if out is not None:
                    out.close()
                now = place.file.name
                out = (folder / now).open("wb", buffering=0)
                out.write(like.headers[now])
            assert out is not None
            for _, tensor in parts:
                wanted -= tensor.numel()
                if (
                    tuple(tensor.shape) not in (place.shape, (tensor.numel(),))
                    or tensor.dtype != place.dtype
                    or wanted < 0
                ):
                    raise ValueError(
                        f"{name}: {tuple(tensor.shape)} {tensor.dtype} in place of {place.shape} {place.dtype}"
                    )
                left = _bytes(tensor.contiguous())
                while len(left):
                    left = left[out.write(left) :]
            if wanted:
                raise ValueError(f"{name}: {wanted} numbers of {place.shape} are missing")
    finally:
        if out is not None:
            out.close()


def _fill(stream: Any, out: Tensor, name: str, file: Path) -> None:
    """Read the bytes of `out` from where `stream` stands. Raises LuthierError where there are fewer."""
    left = _bytes(out)
    while len(left):
        got = stream.readinto(left)
        if not got:
            raise LuthierError(f"{file}: truncated: it ends inside '{name}': fetch it again")
        left = left[got:]


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().flatten().view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")  # type: ignore[arg-type]


def same_make(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str] = ("the first", "another")) -> None:
    """Raises LuthierError, naming the first tensor that differs, where two checkpoints are not of one architecture."""
    for name in sorted(a.keys() ^ b.keys()):
        raise LuthierError(
            f"these checkpoints are not of one architecture: '{name}' is in {names[0] if name in a else names[1]} only"
        )
    for name in a:
        one, two = (make(s, name)[0] for s in (a, b))
        if one != two:
            rows = one[1:] == two[1:] and "embed" in name
            words = "; their vocabularies differ: resize one of them first" if rows else ""
            raise LuthierError(f"'{name}' has shape {one} in {names[0]} and {two} in {names[1]}{words}")
