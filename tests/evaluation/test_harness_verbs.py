"""lm-evaluation-harness on what the verbs make, a proxy-tuned model and a merged one: the numbers of our own scorers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install 'luthier[eval]'")

import luthier
from luthier import sandbox
from luthier.evaluation._compare import measure, task
from luthier.evaluation._harness import evaluate_harness, harness_task
from luthier.verbs.load import decoder_of, load

ROWS = sandbox.rows("sequence", task="copy", n=12, split="test")
SPECS: list[dict[str, Any]] = [
    {
        "name": "verbs_choice", "scorer": "choice",
        "data": [
            {"prompt": r["prompt"], "choices": [r["completion"], " a b c", " l k j i"], "label": i % 3}
            for i, r in enumerate(ROWS)
        ],
    },
    {"name": "verbs_text", "scorer": "perplexity", "data": [{"text": r["prompt"] + r["completion"]} for r in ROWS]},
    {
        "name": "verbs_words", "scorer": "exact_match", "max_new_tokens": 6, "stop": ["\n"],
        "data": [{"prompt": r["prompt"], "answer": "y"} for r in ROWS],
    },
]  # fmt: skip
SAME = {"verbs_choice": ("acc,none", "accuracy"), "verbs_text": ("bits_per_byte,none", "bits_per_byte")}


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(key, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for spec in SPECS:
        harness_task(task(spec), tmp_path / "tasks")
    return tmp_path / "tasks"


def both(model: Path, tasks: Path, decoding: Any = "greedy") -> tuple[dict[str, float], list[str]]:
    """What the harness finds, numbers and generated texts, after they were compared with our own."""
    subject, found = load(str(model)).subject(decoder_of(decoding)), {}
    theirs = evaluate_harness(subject, [s["name"] for s in SPECS], include_path=tasks)
    ours = luthier.evaluate(str(model), SPECS, decoding=decoding)
    for name, (their_key, our_key) in SAME.items():
        found[name] = theirs["results"][name][their_key]
        assert found[name] == pytest.approx(ours[name][our_key]["value"], abs=1e-5), name
    said = [s["resps"][0][0] for s in sorted(theirs["samples"]["verbs_words"], key=lambda s: s["doc_id"])]
    assert said == measure(subject, SPECS[2:]).answers["verbs_words"].outputs
    return found, said


def moved(tiny: Path, folder: Path) -> Path:
    """The tiny model, tuned by chance."""
    shutil.copytree(tiny, folder)
    rng = torch.Generator().manual_seed(1)
    state = {
        n: t + 0.05 * torch.randn(t.shape, generator=rng) for n, t in load_file(tiny / "model.safetensors").items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_proxy_tuned_model(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    expert = moved(tiny, tmp_path / "expert")
    steered = {"name": "proxy_tuning", "expert": str(expert), "anti_expert": str(tiny), "alpha": 2.0}
    plain, proxy = both(tiny, tasks), both(tiny, tasks, steered)
    assert proxy[1] != plain[1] and abs(proxy[0]["verbs_text"] - plain[0]["verbs_text"]) > 1e-3


def test_merged_models(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    wanted = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    loaded, adapter = load(str(tiny)), tmp_path / "adapter"
    get_peft_model(loaded.model, wanted).save_pretrained(adapter)
    loaded.tokenizer.save_pretrained(adapter)
    luthier.merge(adapter, tmp_path / "merged")
    luthier.merge([tiny, moved(tiny, tmp_path / "other")], tmp_path / "mean")
    plain, apart, whole, mean = (both(m, tasks) for m in (tiny, adapter, tmp_path / "merged", tmp_path / "mean"))
    assert whole[1] == apart[1] and whole[0] == pytest.approx(apart[0], abs=1e-5)
    assert all(abs(found[0]["verbs_text"] - plain[0]["verbs_text"]) > 1e-3 for found in (whole, mean))
