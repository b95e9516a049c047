"""Safetensors files read and written one tensor at a time: byte by byte as the library writes; one line for what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.core.method import LuthierError
from luthier.core.shards import Shards, same_make, write_like


def _state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(7, 5), "b": torch.randn(3, 4).bfloat16(), "c": torch.randn(9).half(), "d": torch.randn(()).double(),
        "e": torch.arange(6), "f": torch.tensor([True, False]), "g": torch.empty(0, 4),
        "h": torch.randn(4, 2).to(torch.float8_e4m3fn),
    }  # fmt: skip


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_reads_and_writes_what_the_library_does(tmp_path: Path) -> None:
    state = _state()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shards = Shards(tmp_path)
    assert set(shards) == set(state)
    for name, tensor in state.items():
        assert (shards[name].dtype, shards[name].shape) == (tensor.dtype, tensor.shape)
        assert _bits(shards[name]) == _bits(tensor)
    out = tmp_path / "out"
    out.mkdir()
    write_like(shards, out, shards.items())
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert load_file(out / "model.safetensors").keys() == state.keys()


def test_asking_for_names_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(_state(), tmp_path / "model.safetensors")
    one, two = Shards(tmp_path), Shards(tmp_path)
    monkeypatch.setattr(Shards, "__getitem__", None)
    same_make(one, two)
    assert one.keys() == two.keys()
    assert next(iter(one)) in two
    assert "nothing" not in two


def test_pieces_of_tensors_are_the_tensors(tmp_path: Path) -> None:
    save_file(_state(), tmp_path / "model.safetensors")
    shards, out = Shards(tmp_path), tmp_path / "out"
    shards.piece = 5
    for name in shards:
        parts = list(shards.pieces(name))
        assert all(part.ndim == 1 and len(part) <= 5 for part in parts)
        assert b"".join(map(_bits, parts)) == _bits(shards[name])
    out.mkdir()
    write_like(shards, out, ((name, part) for name in shards for part in shards.pieces(name)))
    assert load_file(out / "model.safetensors").keys() == shards.keys()
    assert all(_bits(t) == _bits(shards[n]) for n, t in load_file(out / "model.safetensors").items())
    with pytest.raises(ValueError, match="are missing"):
        write_like(shards, out, ((name, next(shards.pieces(name))) for name in shards))


def _sharded(folder: Path) -> None:
    state = _state()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, own in parts.items():
        save_file({n: state[n] for n in own}, folder / file)
    where = {n: file for file, own in parts.items() for n in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_shards_go_to_shards(tmp_path: Path) -> None:
    _sharded(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    write_like(Shards(tmp_path), out, Shards(tmp_path).items())
    for file in tmp_path.glob("model*"):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_a_tensor_of_another_make_is_not_written(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="in place of"):
        write_like(Shards(tmp_path), tmp_path / "out", [("a", torch.zeros(3).half())])


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_files_are_named(tmp_path: Path, keep: int) -> None:
    save_file(_state(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(LuthierError, match=r"model\.safetensors: truncated"):
        Shards(tmp_path)


def test_missing_shards_and_tensors_are_named(tmp_path: Path) -> None:
    _sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["lost"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(told))
    with pytest.raises(LuthierError, match="'lost' is missing"):
        Shards(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(LuthierError, match=r"00001-of-00002.*no such file"):
        Shards(tmp_path)


def test_something_else_is_no_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((20).to_bytes(8, "little") + b"not a header at all " + b"0" * 50)
    with pytest.raises(LuthierError, match="cannot be read as safetensors"):
        Shards(tmp_path)


def test_checkpoints_of_two_makes() -> None:
    a = {"embed.weight": torch.zeros(5, 2), "w": torch.zeros(3)}
    same_make(a, {k: v + 1 for k, v in a.items()})
    with pytest.raises(LuthierError, match=r"'w' is in A only"):
        same_make(a, {"embed.weight": a["embed.weight"]}, ("A", "B"))
    with pytest.raises(LuthierError, match=r"'w' has shape \(3,\) in A and \(4,\) in B"):
        same_make(a, {**a, "w": torch.zeros(4)}, ("A", "B"))
    with pytest.raises(LuthierError, match="vocabularies differ"):
        same_make(a, {**a, "embed.weight": torch.zeros(6, 2)}, ("A", "B"))
