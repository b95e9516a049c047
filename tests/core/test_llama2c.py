"""llama2.c checkpoints against the format's own mathematics, written down again here in float64 numpy."""

from __future__ import annotations

import os
import random
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import luthier
from luthier.core.llama2c import half_split, load_checkpoint, load_tokenizer, read_checkpoint, read_pieces
from luthier.core.method import LuthierError

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT = 24, 20, 2, 4, 2, 32
WORDS = [" t", "he", " a", "in", " the", "er", " and", "an", "re", "ed", "aa", "aaa", *" abcdehinrtzé\u2028"]
V = 259 + len(WORDS)

REAL = Path(os.environ.get("LUTHIER_DATA") or "/nowhere") / "models" / "stories260k"
real = pytest.mark.skipif(not REAL.is_dir(), reason="LUTHIER_DATA is not set: the stories checkpoint is not at hand")


def random_tensors(shared: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    d = DIM // HEADS
    shapes = {
        "tok_embeddings": (V, DIM), "attention_norm": (LAYERS, DIM), "ffn_norm": (LAYERS, DIM), "norm": (DIM,),
        "wq": (LAYERS, DIM, DIM), "wk": (LAYERS, KV_HEADS * d, DIM), "wv": (LAYERS, KV_HEADS * d, DIM),
        "wo": (LAYERS, DIM, DIM), "w1": (LAYERS, HIDDEN, DIM), "w2": (LAYERS, DIM, HIDDEN), "w3": (LAYERS, HIDDEN, DIM),
    }  # fmt: skip
    if not shared:
        shapes["output"] = (V, DIM)
    scale = {"attention_norm": 1.0, "ffn_norm": 1.0, "norm": 1.0}
    return {n: (rng.normal(size=s) * 0.3 + scale.get(n, 0.0)).astype(np.float32) for n, s in shapes.items()}


def write(folder: Path, kind: str, shared: bool) -> tuple[Path, dict[str, np.ndarray]]:
    """A made-up checkpoint in one of the two formats, with its tokenizer beside it."""
    t = random_tensors(shared)
    sizes = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS)
    path = folder / f"{kind}-{shared}.bin"
    with path.open("wb") as out:
        if kind == "v1":
            head = struct.pack("<Ii7iB", 0x616B3432, 1, *sizes, V, CONTEXT, shared)
            out.write(head + bytes(256 - len(head)))
            order = ["attention_norm", "ffn_norm", "norm", "tok_embeddings", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]
        else:
            out.write(struct.pack("<7i", *sizes, V if shared else -V, CONTEXT))
            order = ["tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm"]
        for name in order:
            out.write(t[name].tobytes())
        if kind == "legacy":
            out.write(np.full((2, CONTEXT, DIM // HEADS // 2), 7.0, np.float32).tobytes())  # tables that nobody reads
        if not shared:
            out.write(t["output"].tobytes())
    write_tokenizer(folder / "tokenizer.bin", WORDS)
    return path, t


def write_tokenizer(path: Path, words: list[str]) -> None:
    special = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256))]
    pieces = [(p, 0.0) for p in special] + [(w, -float(i)) for i, w in enumerate(words)]
    with path.open("wb") as out:
        out.write(struct.pack("<i", max(len(p.encode()) for p, _ in pieces)))
        for piece, score in pieces:
            raw = piece.encode()
            out.write(struct.pack("<fi", score, len(raw)) + raw)


def forward(t: dict[str, np.ndarray], ids: list[int], heads: int, kv_heads: int) -> np.ndarray:
    """Logits (T, V) by llama2.c's formulas: one token at a time, a cache of keys and values, float64."""
    w = {n: a.astype(np.float64) for n, a in t.items()}
    n_layers, D = w["attention_norm"].shape
    d = D // heads

    def rmsnorm(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        return g * x / np.sqrt((x * x).mean() + 1e-5)

    def turned(v: np.ndarray, position: int) -> np.ndarray:
        out = v.copy()
        for i in range(0, len(v), 2):
            angle = position * 10000.0 ** (-(i % d) / d)
            a, b = v[i], v[i + 1]
            out[i], out[i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
        return out

    keys: list[list[np.ndarray]] = [[] for _ in range(n_layers)]
    values: list[list[np.ndarray]] = [[] for _ in range(n_layers)]
    rows = []
    for position, token in enumerate(ids):
        x = w["tok_embeddings"][token].copy()
        for layer in range(n_layers):
            h = rmsnorm(x, w["attention_norm"][layer])
            q = turned(w["wq"][layer] @ h, position)
            keys[layer].append(turned(w["wk"][layer] @ h, position))
            values[layer].append(w["wv"][layer] @ h)
            mixed = np.zeros(D)
            for head in range(heads):
                shared = head // (heads // kv_heads)
                part, own = slice(shared * d, (shared + 1) * d), slice(head * d, (head + 1) * d)
                score = np.array([q[own] @ k[part] for k in keys[layer]]) / np.sqrt(d)
                p = np.exp(score - score.max())
                mixed[own] = (p / p.sum()) @ np.array([v[part] for v in values[layer]])
            x = x + w["wo"][layer] @ mixed
            h = rmsnorm(x, w["ffn_norm"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
        rows.append(w.get("output", w["tok_embeddings"]) @ rmsnorm(x, w["norm"]))
    return np.array(rows)


def encode(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """llama2.c's own encoder: characters, else bytes; then the best pair, again and again, the leftmost of equals."""
    ids = {p: i for i, p in enumerate(pieces)}
    out: list[int] = []
    for c in ("▁" + text.replace(" ", "▁")) if text else "":
        out += [ids[c]] if ids.get(c, 0) >= 259 else [b + 3 for b in c.encode()]
    while True:
        best, at, made = -1e10, -1, -1
        for i, (a, b) in enumerate(pairwise(out)):
            joined = ids.get(pieces[a] + pieces[b]) if min(a, b) >= 259 else None
            if joined is not None and scores[joined] > best:
                best, at, made = scores[joined], i, joined
        if at < 0:
            return [1, *out]
        out[at : at + 2] = [made]


def logits_of(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def random_ids(n: int, vocabulary: int) -> list[int]:
    return [1, *np.random.default_rng(1).integers(3, vocabulary, n - 1).tolist()]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("kind", ["v1", "legacy"])
def test_logits_are_those_of_the_format(tmp_path: Path, kind: str, shared: bool) -> None:
    path, tensors = write(tmp_path, kind, shared)
    model, _ = load_checkpoint(path)
    ids = random_ids(CONTEXT, V)
    expected = forward(tensors, ids, HEADS, KV_HEADS)
    np.testing.assert_allclose(logits_of(model, ids), expected, atol=2e-5)
    assert model.config.tie_word_embeddings is shared
    assert sum(p.numel() for p in model.parameters()) == sum(a.size for a in tensors.values())


def test_the_order_of_the_rows_matters(tmp_path: Path) -> None:
    """The oracle tells a model whose rows were not put in order from one whose rows were."""
    path, tensors = write(tmp_path, "v1", True)
    model, _ = load_checkpoint(path)
    ids = random_ids(CONTEXT, V)
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            block.self_attn.q_proj.weight.copy_(torch.from_numpy(tensors["wq"][layer]))
            block.self_attn.k_proj.weight.copy_(torch.from_numpy(tensors["wk"][layer]))
    assert np.abs(logits_of(model, ids) - forward(tensors, ids, HEADS, KV_HEADS)).max() > 1e-2


def test_half_split_puts_firsts_before_seconds() -> None:
    weight = np.arange(8, dtype=np.float32)[:, None]  # two heads of four rows
    assert half_split(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_cached_decoding_and_padding_agree(tmp_path: Path) -> None:
    path, tensors = write(tmp_path, "legacy", True)
    model, tokenizer = load_checkpoint(path)
    ids = random_ids(9, V)
    expected = forward(tensors, ids, HEADS, KV_HEADS)[-1].argmax()
    pad = tokenizer.pad_token_id
    grid, mask = torch.tensor([[pad, pad, *ids]]), torch.tensor([[0, 0] + [1] * len(ids)])
    out = model.generate(input_ids=grid, attention_mask=mask, max_new_tokens=1, do_sample=False)
    assert out[0, -1] == expected


def test_saved_as_an_ordinary_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, _ = write(tmp_path, "v1", True)
    model, tokenizer = load_checkpoint(path)
    model.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    other = AutoTokenizer.from_pretrained(tmp_path / "folder")
    ids = random_ids(8, V)
    np.testing.assert_array_equal(logits_of(again, ids), logits_of(model, ids))
    text = "the  ant and\tzé <unk> ☃\n"
    assert other(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (1, 2, 2)
    assert other.model_max_length == CONTEXT
    assert again.generation_config.eos_token_id == [2, 1]
    assert luthier.load(tmp_path / "folder").task == "causal_lm"


def test_luthier_loads_it_by_path(tmp_path: Path) -> None:
    path, tensors = write(tmp_path, "v1", False)
    loaded = luthier.load(path)
    assert (loaded.task, Path(loaded.path)) == ("causal_lm", path.resolve())
    logp = loaded.subject().token_logp(["the ant"])[0]
    ids = loaded.tokenizer("the ant")["input_ids"]
    z = forward(tensors, ids, HEADS, KV_HEADS)[:-1]
    expected = z[np.arange(len(z)), ids[1:]] - np.log(np.exp(z).sum(1))
    np.testing.assert_allclose(logp, expected, atol=2e-5)
    with pytest.raises(LuthierError, match="no classification head"):
        luthier.load(path, task="classification")


def test_conversion_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "v1", True)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_checkpoint(path)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------------- tokenizer


def samples(pieces: list[str], n: int) -> list[str]:
    rng = random.Random(0)
    words = [p.replace("▁", " ") for p in pieces[259:]]
    made = ["".join(rng.choices(words, k=rng.randrange(1, 30))) for _ in range(n)]
    return ["", " ", "\n", "a", "é☃😀", "<unk> <s", *made]


def test_tokens_are_those_of_llama2c(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.bin", WORDS)
    pieces, scores = read_pieces(tmp_path / "tokenizer.bin")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.bin")
    for text in samples(pieces, 300):
        ids = tokenizer(text)["input_ids"]
        assert ids == encode(text, pieces, scores), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.bin", WORDS)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.bin")
    assert tokenizer("the", add_special_tokens=False)["input_ids"] == tokenizer("the")["input_ids"][1:]
    assert tokenizer("a</s>")["input_ids"][-1] == 2
    assert 0 not in tokenizer("a <unk> b")["input_ids"]
    assert tokenizer("the ant", return_offsets_mapping=True)["offset_mapping"][-1][1] == len("the ant")


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-4], "asks for"),
        (lambda b: b + b"\0\0\0\0", "asks for"),
        (lambda b: b[:4] + struct.pack("<i", 2) + b[8:], "format 2 is not read"),
        (lambda b: b"PK\x03\x04" * 64, "not a llama2.c checkpoint"),
        (lambda b: b"", "0 bytes"),
        (lambda b: b[:20] + struct.pack("<i", 5) + b[24:], "do not fit"),
    ],
    ids=["short", "long", "version 2", "other file", "empty", "odd heads"],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, change: object, message: str) -> None:
    path, _ = write(tmp_path, "v1", True)
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(LuthierError, match=message):
        read_checkpoint(path)


def test_a_tokenizer_that_is_missing_broken_or_another_one(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "v1", True)
    beside = tmp_path / "tokenizer.bin"
    write_tokenizer(beside, WORDS[:-1])
    with pytest.raises(LuthierError, match=f"{V} tokens, but its tokenizer has {V - 1}"):
        load_checkpoint(path)
    beside.write_bytes(beside.read_bytes()[:-1])
    with pytest.raises(LuthierError, match="piece"):
        load_checkpoint(path)
    beside.unlink()
    with pytest.raises(LuthierError, match="tokenizer cannot be read"):
        load_checkpoint(path)


# --------------------------------------------------------------------------------------------- the real checkpoint


@real
def test_both_real_files_hold_the_same_model() -> None:
    sizes, v1 = read_checkpoint(REAL / "checkpoint_v1.bin")
    other, legacy = read_checkpoint(REAL / "checkpoint_legacy.bin")
    assert sizes == other
    assert (sizes.layers, sizes.heads, sizes.kv_heads, sizes.vocabulary, sizes.shared) == (5, 8, 4, 512, True)
    for name, tensor in v1.items():
        np.testing.assert_array_equal(tensor, legacy[name])
    turns = np.outer(np.arange(512), 10000.0 ** (-np.arange(0, 8, 2) / 8))
    np.testing.assert_allclose(legacy["freqs_cos"], np.cos(turns), atol=1e-4)


@real
@pytest.mark.parametrize("kind", ["v1", "legacy"])
def test_real_logits(kind: str) -> None:
    path = REAL / f"checkpoint_{kind}.bin"
    model, tokenizer = load_checkpoint(path)
    story = tokenizer("Once upon a time, there was a little girl named Lily. She")["input_ids"]
    ids = story + tokenizer(" had 3 <unk> – and a €5 note.")["input_ids"][1:]
    sizes, tensors = read_checkpoint(path)
    expected = forward(tensors, ids, sizes.heads, sizes.kv_heads)
    np.testing.assert_allclose(logits_of(model, ids), expected, atol=1e-4)
    logp = expected[:-1] - np.log(np.exp(expected[:-1]).sum(1, keepdims=True))
    known = np.arange(len(story) - 1)
    assert logp[known, story[1:]].mean() > -1.0  # a story it knows: log V, for a model that knows nothing, is 6.2


@real
def test_the_real_model_tells_a_story() -> None:
    loaded = luthier.load(REAL / "checkpoint_v1.bin")
    said = loaded.subject().generate(["Once upon a time"], max_new_tokens=40)[0]
    assert said.startswith(", there was a little girl named Lily. She loved to play outside in the park.")


@real
def test_real_tokens() -> None:
    pieces, scores = read_pieces(REAL / "tokenizer.bin")
    tokenizer = load_tokenizer(REAL / "tokenizer.bin")
    lines = (REAL.parents[1] / "wikitext2" / "test.txt").read_text().splitlines()
    for text in [*samples(pieces, 100), *(line for line in lines if line.strip())][:160]:
        ids = tokenizer(text)["input_ids"]
        assert ids == encode(text, pieces, scores), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
