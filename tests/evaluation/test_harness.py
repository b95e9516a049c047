"""lm-evaluation-harness: the same numbers as its own model class, and as our scorers on the same items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import llama, tokenizer

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install 'luthier[eval]'")

from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.evaluation._compare import Task, measure, task
from luthier.evaluation._harness import evaluate_harness, harness_task

WORDS = ["the cat", "in an on", "hello there", "12 and 12", "abcd er"]
SPECS: list[dict[str, Any]] = [
    {
        "name": "our_choice", "scorer": "choice",
        "data": [
            {"prompt": f"{w} is", "choices": ["one", "two th", "x"], "label": i % 3} for i, w in enumerate(WORDS * 2)
        ],
    },
    {"name": "our_text", "scorer": "perplexity", "data": [{"text": f"{w} {w} over and out"} for w in WORDS]},
    {
        "name": "our_words", "scorer": "exact_match", "max_new_tokens": 8, "stop": ["\n", "q"],
        "data": [{"prompt": f"{w}:", "answer": "y"} for w in WORDS],
    },
]  # fmt: skip


NAMES = [s["name"] for s in SPECS]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        patch.setenv(key, "1")
    patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(offline: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    for spec in SPECS:
        harness_task(task(spec), path)
    return path


def subject(kind: str = "bos", size: int = 4096) -> Subject:
    return Subject(llama(), tokenizer(kind), decoder=Greedy(), tokens_per_batch=size)


@pytest.fixture(scope="module")
def ours(folder: Path) -> dict[str, Any]:
    return evaluate_harness(subject(), NAMES, include_path=folder)


def by_doc(found: dict[str, Any], name: str, what: str) -> list[Any]:
    return [s[what] for s in sorted(found["samples"][name], key=lambda s: s["doc_id"])]


def test_equal_to_lm_evals_own_model(folder: Path, ours: dict[str, Any]) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=llama(), tokenizer=tokenizer("bos"), batch_size=3, device="cpu"),
        tasks=NAMES, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    for name, results in theirs["results"].items():
        for metric, expected in results.items():
            if isinstance(expected, float):
                assert ours["results"][name][metric] == pytest.approx(expected, abs=1e-4), (name, metric)
    assert by_doc(ours, "our_words", "resps") == by_doc(theirs, "our_words", "resps")
    for a, b in zip(by_doc(ours, "our_choice", "resps"), by_doc(theirs, "our_choice", "resps"), strict=True):
        for (x,), (y,) in zip(a, b, strict=True):
            assert float(x[0]) == pytest.approx(float(y[0]), abs=1e-3)
            assert str(x[1]) == str(y[1])


def test_equal_to_our_scorers(folder: Path) -> None:
    """Without a BOS, which lm-eval predicts as a token of the text and we do not."""
    measured = measure(subject("causal"), SPECS)
    values, found = measured.values(resamples=50), evaluate_harness(subject("causal"), NAMES, include_path=folder)
    results = found["results"]
    assert results["our_choice"]["acc,none"] == pytest.approx(values["our_choice"]["accuracy"]["value"])
    assert results["our_text"]["bits_per_byte,none"] == pytest.approx(
        values["our_text"]["bits_per_byte"]["value"], abs=1e-5
    )
    assert [r[0][0] for r in by_doc(found, "our_words", "resps")] == measured.answers["our_words"].outputs


def test_batches_change_nothing(folder: Path, ours: dict[str, Any]) -> None:
    again = evaluate_harness(subject(size=40), NAMES, include_path=folder)
    for name in ours["results"]:
        for metric, value in ours["results"][name].items():
            assert again["results"][name][metric] == (
                pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            )


def test_a_task_is_written_as_theirs(folder: Path) -> None:
    one = task(SPECS[0])
    assert isinstance(one, Task)
    assert {"our_choice.yaml", "our_choice.jsonl"} <= {p.name for p in folder.iterdir()}


def test_sums_of_models_are_what_is_measured(folder: Path) -> None:
    """A base that is its own anti-expert is the expert: in likelihoods, whole texts and generations, for both libraries."""
    import copy

    import torch

    from luthier.decoding.proxy_tuning import ProxyTuning

    base, expert = llama(), copy.deepcopy(llama())
    torch.manual_seed(3)
    with torch.no_grad():
        expert.lm_head.weight.add_(torch.randn_like(expert.lm_head.weight) * 0.3)
    steered = Subject(base, tokenizer("bos"), decoder=ProxyTuning(expert=expert, anti_expert=copy.deepcopy(base)))
    alone = Subject(expert, tokenizer("bos"), decoder=Greedy())
    a, b, plain = (evaluate_harness(s, NAMES, include_path=folder)["results"] for s in (steered, alone, subject()))
    moved = 0
    for name in NAMES:
        for key, value in a[name].items():
            if isinstance(value, float):
                assert value == pytest.approx(b[name][key], abs=1e-4), (name, key)
                moved += value != plain[name][key]
    assert moved > 0, "the expert must differ from the base for this to mean anything"
    for spec in SPECS:
        ours, theirs = (measure(s, [spec]).values(resamples=50) for s in (steered, alone))
        for metric, entry in ours[spec["name"]].items():
            assert entry["value"] == pytest.approx(theirs[spec["name"]][metric]["value"], abs=1e-4)
