"""What a teacher said, stored: alignment, precision, what is refused, and how a run finds it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.checks._models import PAD, model_of, sources_targets, texts
from luthier.core.method import LuthierError
from luthier.core.mixture import FLOOR
from luthier.core.teacher import TeacherStore, ask, asked, predicted, vocabulary_hash

torch.set_num_threads(1)
EXAMPLES = list(texts())


def test_round_trip(tmp_path: Path) -> None:
    """Ids exactly, probabilities to 1e-3, rows in any order and any part of them."""
    model, k = model_of("llama"), 5
    store = ask(model, EXAMPLES, k, PAD, size=4)
    store.save(tmp_path / "said.safetensors")
    again = TeacherStore.load(tmp_path / "said.safetensors")
    assert again.about == store.about
    for e, (ids, logp) in zip(EXAMPLES[::-2], again.of(EXAMPLES[::-2]), strict=True):
        rows = torch.tensor(predicted(e)) - 1
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)[rows].topk(k)
        assert torch.equal(ids, wanted.indices)
        torch.testing.assert_close(logp.exp(), wanted.values.exp(), rtol=0, atol=1e-3)


def test_rows_say_what_they_predict_and_padding_is_none() -> None:
    store = ask(model_of("llama"), EXAMPLES, 3, PAD)
    assert len(store.ids) == sum(sum(e.counts[1:]) for e in EXAMPLES)
    for e, example in enumerate(EXAMPLES):
        rows = store.predicts[store.starts[e] : store.starts[e + 1]].tolist()
        assert rows == [t for t in range(1, len(example)) if example.counts[t]]


def test_encoder_decoder() -> None:
    model, examples = model_of("t5"), list(sources_targets())
    e = examples[2]
    with torch.no_grad():
        read = torch.tensor([[model.config.decoder_start_token_id, *e.target[:-1]]])
        wanted = model(input_ids=torch.tensor([e.ids]), decoder_input_ids=read).logits[0].topk(4).indices
    assert torch.equal(ask(model, examples, 4, PAD).of([e])[0][0], wanted)


def test_impossible_tokens_and_tokens_that_are_none() -> None:
    """Log-probabilities end at the floor, and rows that pad an embedding table are never listed."""
    model = model_of("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(500)
    store = ask(model, EXAMPLES, 60, PAD, tokens=64)
    assert float(store.logp.min()) == FLOOR
    assert int(store.ids.max()) < 64
    assert store.ids.shape[1] == 60


def test_captured_mass() -> None:
    mass = torch.tensor([[0.5, 0.45], [0.3, 0.5], [0.9, 0.09], [0.6, 0.38]])
    none = torch.zeros(0, dtype=torch.int64)
    found = TeacherStore(none, mass.log(), none, none, none, {}).captured()
    assert found["mean"] == pytest.approx((0.95 + 0.8 + 0.99 + 0.98) / 4)
    assert found["share_below_0.9"] == 0.25
    assert 0.8 < found["fifth_percentile"] < 0.85


def test_refusals(tmp_path: Path) -> None:
    store = ask(model_of("llama"), EXAMPLES[:2], 3, PAD)
    with pytest.raises(LuthierError, match="not asked about row 2"):
        store.of(EXAMPLES[:3])
    with pytest.raises(LuthierError, match="holds 3 tokens a position, not 5"):
        store.cut(5)
    assert store.cut(2).ids.shape[1] == 2
    (tmp_path / "other").write_text("nothing")
    for name in ("other", "missing"):
        with pytest.raises(LuthierError, match="no teacher store"):
            TeacherStore.load(tmp_path / name)


def test_a_teacher_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, rows, k or vocabulary are asked anew."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    model, other = model_of("llama"), model_of("llama")
    with torch.no_grad():
        other.get_output_embeddings().weight.add_(0.01)
    first, reused = asked(model, EXAMPLES, 3, PAD, "v")
    assert not reused
    again, reused = asked(model, EXAMPLES[::-1], 3, PAD, "v")
    assert reused
    assert torch.equal(first.ids, again.ids)
    for told in (
        (other, EXAMPLES, 3, "v"),
        (model, EXAMPLES[1:], 3, "v"),
        (model, EXAMPLES, 4, "v"),
        (model, EXAMPLES, 3, "w"),
    ):
        assert not asked(*told[:3], PAD, told[3])[1]


class Words:
    """A tokenizer as far as its vocabulary."""

    def __init__(self, *words: str):
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {w: i for i, w in enumerate(self.words)}


def test_vocabularies_are_told_apart() -> None:
    assert vocabulary_hash(Words("a", "b")) == vocabulary_hash(Words("a", "b"))
    assert len({vocabulary_hash(Words(*w)) for w in (("a", "b"), ("b", "a"), ("a", "b", "c"))}) == 3


def recipe(folder: Path, **objective: Any) -> dict[str, Any]:
    return {
        "model": "nano-1m", "objective": objective, "evaluate": {"drift": False}, "output_dir": str(folder / "run"),
        "data": {"train": "sandbox:sequence?task=copy&n=8"},
        "train": {"max_steps": 1, "per_device_train_batch_size": 8, "logging_steps": 1},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["distill", "first"])
def test_a_run_names_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The model itself as teacher: no loss at the first step but for what half a precision rounds away."""
    from luthier.verbs.run import run

    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    done = run(recipe(tmp_path, name=name, teacher="nano-1m"), quiet=True)
    assert abs(done.fitted.log[0]["loss"]) < 1e-4


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from luthier.verbs.run import run

    for name in ("distill", "first"):
        with pytest.raises(LuthierError, match="tokenizer") as error:
            run(recipe(tmp_path / name, name=name, teacher=str(_other_model(tmp_path))), quiet=True)
        assert "\n" not in str(error.value)
    store = ask(model_of("llama"), EXAMPLES, 5, PAD, vocabulary="another")
    store.save(tmp_path / "said.safetensors")
    with pytest.raises(LuthierError, match="another tokenizer"):
        run(recipe(tmp_path / "file", name="first", teacher=str(tmp_path / "said.safetensors")), quiet=True)


def _other_model(folder: Path) -> Path:
    """A model whose tokenizer has two tokens in each other's place."""
    import json

    from luthier import sandbox

    model, tokenizer = sandbox.load("nano-1m")
    place = folder / "other"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    told = json.loads((place / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    a, b = [w for w, i in vocabulary.items() if i in (50, 51)]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (place / "tokenizer.json").write_text(json.dumps(told))
    return place
