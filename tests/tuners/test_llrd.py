"""Layer-wise decay: schedules keep the ratios, and nothing is left out or counted twice."""

import pytest

from luthier.checks import tuners as battery
from luthier.checks._models import ARCHITECTURES, MORE_ARCHITECTURES, WORLDS, model_of
from luthier.core import catalog
from luthier.core.loop import LoopCallback
from luthier.core.method import LuthierError

LLRD = catalog.load("tuners", "llrd")


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE_ARCHITECTURES])
def test_every_tensor_is_in_exactly_one_group(name: str) -> None:
    model = model_of(name)
    groups = LLRD(decay=0.5).groups(model)
    assert sorted(n for g in groups for n in g["params"]) == sorted(n for n, _ in model.named_parameters())
    assert [g["lr_scale"] for g in groups] == sorted(g["lr_scale"] for g in groups)


def test_the_schedule_scales_all_rates_alike() -> None:
    """And the embeddings are the slowest, not the head."""
    world = next(w for w in WORLDS if w.architecture == "bert-classifier")
    tuner = LLRD(decay=0.5)
    model = battery.wrapped(tuner, world)
    run = battery.loop(tuner, world, model, 4, lr_scheduler_type="linear", warmup_ratio=0.5)
    seen = []

    class Rates(LoopCallback):
        def step(self, loop) -> None:
            seen.append([g["lr"] for g in loop.optimizer.param_groups])

    run.callbacks.append(Rates())
    run.fit()
    for rates in seen:
        assert rates == pytest.approx([rates[-1] * 0.5**k for k in (3, 2, 1, 0)])
    assert len({r[-1] for r in seen}) > 1
    slow = {id(p) for p in run.optimizer.param_groups[0]["params"]}
    assert id(model.bert.embeddings.word_embeddings.weight) in slow
    assert id(model.classifier.weight) in {id(p) for p in run.optimizer.param_groups[-1]["params"]}


def test_tied_tables_are_one_tensor() -> None:
    groups = LLRD().groups(model_of("gpt2"))
    assert [g for g in groups for n in g["params"] if n == "lm_head.weight"] == []
    assert "transformer.wte.weight" in groups[0]["params"]


def test_a_rate_of_nothing_is_an_error() -> None:
    with pytest.raises(LuthierError, match=r"tuner\.decay is 0"):
        LLRD(decay=0.0)


def test_unknown_architectures_are_refused() -> None:
    """ALBERT shares one block among all layers: there are no lower ones to slow down."""
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=96, embedding_size=16, hidden_size=32, num_attention_heads=4, intermediate_size=48
    )
    with pytest.raises(LuthierError, match="albert"):
        LLRD().groups(transformers.AlbertForMaskedLM(config))
