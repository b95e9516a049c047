"""Reused activations: the same losses as without, layers that do not run, layouts, files and refusals."""

import numpy as np
import pytest
import torch

from luthier.checks._models import PAD, WORLDS, Likelihood, groups, labelled, model_of, sources_targets, texts
from luthier.core import catalog, layer_cache
from luthier.core.batch import LabelledExample, SourceTargetExample, TextExample
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import LuthierError

FREEZE, SFT, DPO = (
    catalog.load("tuners", "freeze"),
    catalog.load("objectives", "sft"),
    catalog.load("objectives", "dpo"),
)
CLASSES = catalog.load("objectives", "classification")


def even_texts(n: int = 8) -> list[TextExample]:
    rng = np.random.default_rng(5)
    return [TextExample(i, rng.integers(5, 96, 9).tolist(), [False] * 3 + [True] * 6) for i in range(n)]


def even_labels(n: int = 8) -> list[LabelledExample]:
    return [LabelledExample(e.row, e.ids, e.row % 3) for e in even_texts(n)]


def even_pairs(n: int = 8) -> list[SourceTargetExample]:
    return [SourceTargetExample(e.row, e.ids, e.ids[:4]) for e in even_texts(n)]


def fit(model, tuner, objective, examples, wanted, steps=8, references=None, **settings) -> Loop:
    told = {
        "max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1,
        "cache_frozen_layers": wanted, **settings,
    }  # fmt: skip
    model = tuner.wrap(model, "causal_lm")
    run = Loop(model, tuner, objective, examples, TrainSettings(**told), PAD, references=references)
    run.calls = 0

    def count(*told) -> None:
        run.calls += 1

    lowest = model.get_encoder().block[0] if hasattr(model, "encoder") else None
    for name in ("model.layers.0", "transformer.h.0", "bert.encoder.layer.0"):
        if lowest is None and name in dict(model.named_modules()):
            lowest = model.get_submodule(name)
    lowest.mlp.register_forward_hook(count) if hasattr(lowest, "mlp") else lowest.register_forward_hook(count)
    run.fitted = run.fit()
    return run


def losses(run: Loop) -> list[float]:
    return [row["loss"] for row in run.history if "loss" in row]


def both(make, tuner, objective, examples, **more) -> tuple[Loop, Loop]:
    return tuple(fit(make(), tuner, objective, examples, wanted, **more) for wanted in (False, True))


HEAD = FREEZE(train=("lm_head",))
CASES = {
    "llama, last layer": (lambda: model_of("llama"), FREEZE(lowest=1), SFT(), even_texts()),
    "llama, head": (lambda: model_of("llama"), HEAD, SFT(), even_texts()),
    "gpt2": (lambda: model_of("gpt2", tie_word_embeddings=False), FREEZE(lowest=1), SFT(), even_texts()),
    "bert": (lambda: model_of("bert-classifier"), FREEZE(lowest=1), CLASSES(), even_labels()),
    "t5, decoder": (
        lambda: model_of("t5", tie_word_embeddings=False), FREEZE(freeze=("encoder", "shared")), SFT(), even_pairs()
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_same_to_the_last_bit(case: str) -> None:
    """Rows of equal length, shuffled anew every epoch."""
    plain, kept = both(*CASES[case])
    assert kept.kept is not None
    assert losses(plain) == losses(kept)
    for name, tensor in plain.plain.state_dict().items():
        assert torch.equal(
            tensor, kept.plain.get_parameter(name) if name in dict(kept.plain.named_parameters()) else tensor
        )


@pytest.mark.parametrize("group_by_length", [True, False])
def test_rows_of_different_length_agree_to_rounding(group_by_length: bool) -> None:
    plain, kept = both(
        lambda: model_of("llama"), FREEZE(lowest=1), SFT(), list(texts(9)), group_by_length=group_by_length, steps=9
    )
    assert losses(kept) == pytest.approx(losses(plain), rel=2e-6)


def test_packed_rows_and_shared_prompts() -> None:
    for objective, examples, more in (
        (SFT(), list(texts(9)), {"packing": True, "packed_length": 30}),
        (DPO(), list(groups(8)), {"share_prompt": True, "references": [torch.zeros(2)] * 8}),
        (DPO(), list(groups(8)), {"share_prompt": False, "references": [torch.zeros(2)] * 8}),
    ):
        plain, kept = both(lambda: model_of("llama"), FREEZE(lowest=1), objective, examples, **more)
        assert losses(kept) == pytest.approx(losses(plain), rel=2e-6)


def test_labels_and_sources_of_different_length() -> None:
    cases = [
        (lambda: model_of("bert-classifier"), FREEZE(lowest=1), CLASSES(), list(labelled(n=9))),
        (CASES["t5, decoder"][0], CASES["t5, decoder"][1], SFT(), list(sources_targets(9))),
    ]
    for case in cases:
        plain, kept = both(*case)
        assert losses(kept) == pytest.approx(losses(plain), rel=2e-6)


def test_frozen_layers_do_not_run_again() -> None:
    """For each group, to find what stands still and for the meters; never in the steps; it is in the bill."""
    plain, kept = both(lambda: model_of("llama"), HEAD, SFT(), even_texts(), steps=20)
    assert kept.kept.depth == 2
    assert plain.calls - kept.calls >= 20 - 4
    assert kept.fitted.cost["train_flops"] < plain.fitted.cost["train_flops"]
    again = fit(model_of("llama"), HEAD, SFT(), even_texts(), True, steps=2)
    assert again.calls == kept.calls


def test_how_a_step_is_split_changes_nothing_kept() -> None:
    whole = fit(model_of("llama"), FREEZE(lowest=1), SFT(), list(texts(8)), True, per_device_train_batch_size=4)
    split = fit(
        model_of("llama"), FREEZE(lowest=1), SFT(), list(texts(8)), True, per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    assert all(torch.equal(t, split.kept.store.kept[i]) for i, t in whole.kept.store.kept.items())


def test_in_a_file_that_the_next_run_finds(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(layer_cache, "MEMORY_BYTES", 0)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    told = (FREEZE(lowest=1), SFT(), even_texts())
    plain = fit(model_of("llama"), *told, False)
    first, second = (fit(model_of("llama"), *told, True) for _ in range(2))
    assert losses(plain) == losses(first) == losses(second)
    assert second.calls == first.calls - 1  # the one group was there
    assert len(list((tmp_path / "layers").iterdir())) == 2
    other = fit(model_of("llama", rms_norm_eps=1e-5), *told, True)
    assert len(list((tmp_path / "layers").iterdir())) == 2
    del other
    fit(model_of("llama"), FREEZE(lowest=1), SFT(), even_texts(7), True)
    assert len(list((tmp_path / "layers").iterdir())) == 4  # other data, another file
    assert fit(model_of("llama"), *told, "auto").kept is None  # nothing is written unasked


@pytest.mark.parametrize(
    ("model", "tuner", "objective", "more", "message"),
    [
        (lambda: model_of("llama"), catalog.load("tuners", "full")(), SFT(), {}, "nothing stands still"),
        (lambda: model_of("gpt2"), FREEZE(train=("wte",)), SFT(), {}, "nothing stands still"),  # the tied head moves the table
        (
            lambda: model_of("gpt2", tie_word_embeddings=False, resid_pdrop=0.1), FREEZE(lowest=1), SFT(), {},
            "set the model's dropout to 0",
        ),
        (lambda: model_of("llama"), FREEZE(lowest=1), Likelihood(), {}, "changes its inputs from visit to visit"),
        (lambda: model_of("llama"), FREEZE(lowest=1), SFT(), {"gradient_checkpointing": True}, "switch it off"),
    ],
    ids=["full", "tied", "dropout", "view", "checkpointing"],
)  # fmt: skip
def test_where_it_cannot_be_exact(model, tuner, objective, more, message) -> None:
    with pytest.raises(LuthierError, match=message):
        fit(model(), tuner, objective, even_texts(), True, **more)
    assert fit(model(), tuner, objective, even_texts(), "auto", steps=4, **more).kept is None


def test_auto_needs_two_epochs() -> None:
    told = (FREEZE(lowest=1), SFT(), even_texts())
    assert fit(model_of("llama"), *told, "auto", steps=3).kept is None
    assert fit(model_of("llama"), *told, "auto", steps=4).kept is not None


def test_worlds_are_left_as_they_were() -> None:
    run = fit(model_of("llama"), FREEZE(lowest=1), SFT(), even_texts(), True)
    assert not any("forward" in vars(m) for m in run.plain.modules())
    assert torch.isfinite(WORLDS[0].said(run.plain)).all()
