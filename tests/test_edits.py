"""`luthier edit` and `luthier merge`: from files to files, atomic, checked, and one clear line for what cannot be done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import luthier
from luthier.core import catalog, config
from luthier.core.config import ModelSettings
from luthier.core.delta import apply_delta
from luthier.core.method import LuthierError, Refusal
from luthier.core.shards import Shards
from luthier.edits.graft import Graft, mask_of, overlap
from luthier.verbs import _probes
from luthier.verbs.builds import WAYS, _made, builds, quantise
from luthier.verbs.edit import edit
from luthier.verbs.load import load

WEIGHTS = "model.safetensors"


def _other(tiny: Path, folder: Path, change: Any = None, seed: int = 1) -> Path:
    """The tiny model with other numbers."""
    shutil.copytree(tiny, folder)
    generator = torch.Generator().manual_seed(seed)
    state = {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in load_file(tiny / WEIGHTS).items()}
    if change is not None:
        change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _edit(name: str, models: list[Path], out: Path, **more: Any) -> Any:
    options = more.pop("options", {})
    told = {
        "edit": {"name": name, **options},
        "models": [str(m) for m in models],
        "output_dir": str(out),
        "check": False,
    }
    return edit({**told, **more})


def _nothing_is_left(folder: Path, *but: str) -> None:
    assert sorted(f.name for f in folder.iterdir()) == sorted(but)


# ------------------------------------------------------------------------------------------------ files


def test_one_model_merged_is_itself_byte_by_byte(tiny: Path, tmp_path: Path) -> None:
    done = _edit("merge", [tiny], tmp_path / "out", check=True)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tiny / WEIGHTS).read_bytes()
    assert done.check.passed and done.check.max_logit_difference == 0 == done.check.kl


def test_sharded_checkpoints_stay_sharded_and_half_precision_stays_half(tiny: Path, tmp_path: Path) -> None:
    other = _other(tiny, tmp_path / "other")
    for name, where in (("a", tiny), ("b", other)):
        loaded = load(str(where))
        loaded.model.bfloat16().save_pretrained(tmp_path / name, max_shard_size="60KB")
        loaded.tokenizer.save_pretrained(tmp_path / name)
    _edit("merge", [tmp_path / "a", tmp_path / "b"], tmp_path / "out", options={"weight": [0.25, 0.75]}, check=True)
    files = sorted(f.name for f in (tmp_path / "out").glob("model*"))
    assert files == sorted(f.name for f in (tmp_path / "a").glob("model*")) and len(files) > 3
    out, a, b = (Shards(tmp_path / n) for n in ("out", "a", "b"))
    for name in out:
        assert out[name].dtype == torch.bfloat16
        assert torch.equal(out[name], (0.25 * a[name].float() + 0.75 * b[name].float()).bfloat16()), name


def test_few_tensors_are_in_memory_at_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of what was read and is still held never exceed a small multiple of the largest tensor, or of a piece."""
    read, pieces, held, most = Shards.__getitem__, Shards.pieces, [0], [0]

    def counted(out: Tensor) -> Tensor:
        size = out.untyped_storage().nbytes()
        held[0] += size
        most[0] = max(most[0], held[0])
        weakref.finalize(out, lambda: held.__setitem__(0, held[0] - size))
        return out

    monkeypatch.setattr("luthier.core.shards.PIECE", 64)
    monkeypatch.setattr(Shards, "__getitem__", lambda self, name: counted(read(self, name)))
    monkeypatch.setattr(Shards, "pieces", lambda self, name: map(counted, pieces(self, name)))
    state = load_file(tiny / WEIGHTS)
    largest, whole = max(t.nbytes for t in state.values()), sum(t.nbytes for t in state.values())
    other = _other(tiny, tmp_path / "other")
    for name in ("merge", "task_arithmetic", "slerp", "dare", "ties"):
        most[0] = 0
        _edit(name, [tiny, other], tmp_path / name)
        assert 2 * 64 * 4 <= most[0] <= 8 * 64 * 4 < largest, name
    most[0] = 0
    _edit("half_reset", [tiny, other], tmp_path / "half_reset")
    assert 2 * largest <= most[0] <= 3 * largest < 2 * whole


def test_an_adapter_among_the_models_is_merged_first(tiny: Path, tmp_path: Path) -> None:
    adapter = _adapter(tiny, tmp_path / "adapter")
    _edit("merge", [tiny, adapter], tmp_path / "out", check=True)
    wanted = load(str(adapter)).model.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "out" / WEIGHTS).items():
        assert torch.allclose(tensor, (load_file(tiny / WEIGHTS)[name] + wanted[name]) / 2, atol=1e-6), name
    _nothing_is_left(tmp_path, "adapter", "out")


def test_names_of_other_files_are_found(tmp_path: Path, tiny: Path) -> None:
    """A checkpoint without the head's prefix, as the hub has of GPT-2, pruned by its architecture."""
    from luthier.checks._models import model_of

    model = model_of("gpt2", vocab_size=len(load(str(tiny)).tokenizer))
    model.save_pretrained(tmp_path / "full")
    state = {n.removeprefix("transformer."): t for n, t in load_file(tmp_path / "full" / WEIGHTS).items()}
    save_file(state, tmp_path / "full" / WEIGHTS, metadata={"format": "pt"})
    load(str(tiny)).tokenizer.save_pretrained(tmp_path / "full")
    done = _edit("magnitude", [tmp_path / "full"], tmp_path / "out", options={"sparsity": 0.5}, check=True)
    assert done.check.passed
    pruned = load(str(tmp_path / "out")).model.transformer.h[0].attn.c_attn.weight
    assert int((pruned == 0).sum()) == pruned.numel() // 2


def test_a_hub_id_is_read_from_its_files(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub's client fetched, or had, is read tensor by tensor; what it cannot find is one line."""
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        if name == "some/model":
            return str(tiny)
        raise OSError("no such repository\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    _edit("merge", [Path("some/model"), tiny], tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).exists()
    with pytest.raises(LuthierError, match=r"'some/other' cannot be loaded: no such repository$"):
        _edit("merge", [Path("some/other")], tmp_path / "none")
    assert asked == ["some/model", "some/other"]


# ----------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_merged_is_one_line_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    def nan(state: dict[str, Tensor]) -> None:
        state["model.layers.1.mlp.up_proj.weight"][2, 3] = torch.nan

    cases = {
        "more rows": ("vocabularies differ", lambda s: s.update({"model.embed_tokens.weight": torch.zeros(7, 48)})),
        "shape": ("has shape", lambda s: s.update({"model.norm.weight": torch.zeros(7)})),
        "name": ("is in", lambda s: s.update({"extra": torch.zeros(7)})),
        "nan": ("'model.layers.1.mlp.up_proj.weight' holds NaN", nan),
    }
    for name, (told, change) in cases.items():
        other = _other(tiny, tmp_path / name, change)
        with pytest.raises(LuthierError, match=told) as error:
            _edit("merge", [tiny, other], tmp_path / "out")
        assert "\n" not in str(error.value)
    _nothing_is_left(tmp_path, *cases)


def test_truncated_shards_other_settings_and_other_words(tiny: Path, tmp_path: Path) -> None:
    other = _other(tiny, tmp_path / "short")
    whole = (other / WEIGHTS).read_bytes()
    (other / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(LuthierError, match="truncated"):
        _edit("merge", [tiny, other], tmp_path / "out")
    other = _other(tiny, tmp_path / "heads")
    told = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**told, "num_attention_heads": 8, "num_key_value_heads": 4}))
    with pytest.raises(LuthierError, match=r"num_attention_heads is 4 in .*, 8 in"):
        _edit("merge", [tiny, other], tmp_path / "out")
    other = _other(tiny, tmp_path / "words")
    text = (other / "tokenizer.json").read_text()
    words = json.loads(text)
    vocabulary = words["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(LuthierError, match=r"vocabularies of .* differ"):
        _edit("merge", [tiny, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_it_may_not_write(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for out, told in ((tmp_path / "file" / "out", "cannot be written"), (tmp_path / "folder", "no model folder")):
        with pytest.raises(LuthierError, match=told):
            _edit("merge", [tiny, tiny], out)
    with pytest.raises(LuthierError, match="one of the models"):
        _edit("merge", [tiny, tiny], tiny)
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    _edit("merge", [tiny], tmp_path / "out")
    _edit("slerp", [tiny, tiny], tmp_path / "out")  # what an edit wrote may be written again


def test_a_full_disk_leaves_what_was_there(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _edit("merge", [tiny], tmp_path / "out")
    before = (tmp_path / "out" / "edit.json").read_text()

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luthier.verbs.edit.write_like", full)
    with pytest.raises(LuthierError, match="No space left"):
        _edit("slerp", [tiny, tiny], tmp_path / "out")
    assert (tmp_path / "out" / "edit.json").read_text() == before
    _nothing_is_left(tmp_path, "out")


def test_mistakes_in_an_edit_recipe(tiny: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"edit": "merge", "modls": []}, "did you mean 'models'"),
        ({"edit": "merge", "models": [str(tiny)]}, "'output_dir' is missing"),
        ({"edit": {"name": "ties", "densty": 1}}, "did you mean 'density'"),
        ({"edit": {"name": "slerp", "t": 2}}, "a number from 0 to 1"),
        ({"edit": "slerp"}, "slerp takes 2 checkpoints, not 1"),
        ({"edit": "wanda"}, "asks data"),
        ({"edit": {"name": "merge", "weight": [1.0, 2.0]}}, "has 2 numbers for 1 models"),
    ]
    for change, told in cases:
        whole = {"models": [str(tiny)], "output_dir": str(tmp_path / "out"), **change}
        if "output_dir" in told:
            del whole["output_dir"]
        with pytest.raises((LuthierError, config.ConfigError), match=told):
            edit(whole)
    _nothing_is_left(tmp_path)


def test_a_word_of_python_is_an_option_and_flags_are_dotted(tiny: Path, tmp_path: Path) -> None:
    other = _other(tiny, tmp_path / "other")
    told = {
        "edit": "task_arithmetic",
        "models": [str(other)],
        "base_model": str(tiny),
        "output_dir": str(tmp_path / "out"),
    }
    edit({**told, "check": False}, {"edit.lambda": 0.0})
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tiny / WEIGHTS).read_bytes()


# ---------------------------------------------------------------------------------------------- the check


def _adapter(tiny: Path, folder: Path, zero: bool = False, **more: Any) -> Path:
    torch.manual_seed(4)
    told = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": zero, **more}
    model = get_peft_model(load(str(tiny)).model, LoraConfig(task_type="CAUSAL_LM", **told))
    model.save_pretrained(folder)
    load(str(tiny)).tokenizer.save_pretrained(folder)
    return folder


def test_a_merge_that_changed_something_is_taken_away(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is read back: numbers lost between memory and disk are found."""
    from transformers import PreTrainedModel

    from luthier import cli

    adapter = _adapter(tiny, tmp_path / "adapter")
    saved = PreTrainedModel.save_pretrained

    def lossy(self: Any, folder: Any, **more: Any) -> None:
        with torch.no_grad():
            self.model.layers[1].mlp.down_proj.weight += 0.05
        saved(self, folder, **more)

    assert luthier.merge(adapter, tmp_path / "good").passed
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lossy)
    with pytest.raises(SystemExit) as ended:
        cli.main(["merge", str(adapter), "-o", str(tmp_path / "bad")])
    assert ended.value.code == 1
    assert "DIFFERS" in capsys.readouterr().err
    _nothing_is_left(tmp_path, "adapter", "good")


def test_an_edit_that_is_read_back_otherwise_is_taken_away(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the probes' logits from other weights: what transformers reads is not what was written."""
    once, calls = _probes.ask, []

    def forgetful(loaded: Any, *more: Any) -> Any:
        calls.append(loaded)
        if len(calls) == 3:
            with torch.no_grad():
                loaded.model.model.norm.weight.mul_(1.01)
        return once(loaded, *more)

    monkeypatch.setattr("luthier.verbs.edit.ask", forgetful)
    with pytest.raises(_probes.Differs, match="DIFFERS FROM WHAT IT WAS MADE FROM"):
        _edit("slerp", [tiny, _other(tiny, tmp_path / "other")], tmp_path / "out", check=True)
    _nothing_is_left(tmp_path, "other")


@pytest.mark.parametrize(
    ("gap", "same", "dtype", "passed"),
    [
        (1e-5, True, torch.float32, True), (1e-3, True, torch.float32, False), (0.0, False, torch.float32, False),
        (float("nan"), True, torch.float32, False), (0.05, False, torch.bfloat16, True), (0.3, True, torch.bfloat16, False),
    ],
)  # fmt: skip
def test_tolerance_by_dtype(gap: float, same: bool, dtype: torch.dtype, passed: bool) -> None:
    logits = torch.tensor([[0.2, -0.9]])
    one, other = _probes.Answer(logits, [1]), _probes.Answer(logits + gap, [1 if same else 2])
    assert _probes.compare("x", [one], [other], dtype).passed is passed


def test_an_adapter_for_another_base(tiny: Path, tmp_path: Path) -> None:
    """Another width is refused, and so is a deeper model's adapter, of which half would be left out."""
    adapter = _adapter(tiny, tmp_path / "adapter")
    about = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": "nano-1m"}))
    with pytest.raises(LuthierError, match="does not fit 'nano-1m'"):
        luthier.merge(adapter, tmp_path / "out")
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    state = load_file(adapter / "adapter_model.safetensors")
    deeper = {n.replace("layers.2", "layers.3"): t.clone() for n, t in state.items() if "layers.2" in n}
    save_file({**state, **deeper}, adapter / "adapter_model.safetensors")
    with pytest.raises(LuthierError, match=r"does not fit .*layers\.3"):
        luthier.merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------- builds


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_five_builds(tiny: Path, tmp_path: Path, kind: str) -> None:
    found = builds(_adapter(tiny, tmp_path / "adapter"), kind)
    assert found["served"].kl == 0 == found["served"].max_logit_difference
    assert found["kept"].max_logit_difference < 1e-5
    for name in ("original", "reloaded", "in place"):
        assert found[name].kl > 1e-8 and found[name].max_logit_difference > 1e-4
    assert (
        found["reloaded"].megabytes == found["in place"].megabytes < found["served"].megabytes < found["kept"].megabytes
    )
    assert len(found.ratio) == 9 and "KL to served" in found.text()


def test_builds_of_an_adapter_that_does_nothing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="changes no matrix"):
        builds(_adapter(tiny, tmp_path / "adapter", zero=True))
    with pytest.raises(LuthierError, match="ordinary model"):
        builds(str(tiny))


def test_builds_without_an_adapters_change_are_the_base(tiny: Path, tmp_path: Path) -> None:
    """B = 0: what is served is Q(W), what is merged into the original is W; given beside its base or by itself."""
    adapter = _adapter(tiny, tmp_path / "adapter", zero=True)
    low, plain = load(str(tiny)), load(str(tiny))
    quantise(low.model, "nf4")
    ids = torch.arange(12)[None]
    for source in (adapter, ModelSettings(model_name_or_path=str(tiny), adapter=str(adapter))):
        for way, base in (("served", low), ("kept", low), ("in place", low), ("original", plain), ("reloaded", low)):
            made, _ = _made(source, "nf4", *WAYS[way])
            assert (made.model.eval()(ids).logits - base.model.eval()(ids).logits).abs().max() < 1e-5, way
    assert not torch.allclose(low.model(ids).logits, plain.model(ids).logits, atol=1e-4)


def test_builds_are_asked_what_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def measure(made: Any) -> dict[str, float]:
        seen.append(made)
        return {"points": float(len(seen))}

    found = builds(_adapter(tiny, tmp_path / "adapter"), "nf4", ["a b c"], measure)
    assert [r.figures for r in found.rows] == [{"points": float(i)} for i in range(1, 6)]
    assert "points" in found.text().splitlines()[0] and found.text().splitlines()[5].endswith("5.0000")


def test_builds_of_a_soft_prompt_are_refused(recipe: dict[str, Any]) -> None:
    recipe["tuner"], recipe["train"]["max_steps"] = {"name": "prompt_tuning"}, 1
    done = luthier.run(recipe, quiet=True)
    with pytest.raises(Refusal):
        builds(done.folder)


# --------------------------------------------------------------------------------------------------- graft


def _tuned(base: nn.Module, only: str = "layers", seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: t + 0.05 * torch.randn(t.shape, generator=generator) ** 3 if only in n else t.clone()
        for n, t in base.state_dict().items()
    }


def _folder(loaded: Any, state: dict[str, Tensor], folder: Path) -> Path:
    loaded.model.load_state_dict(state)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def test_grafts_stack_and_come_off_exactly(tiny: Path, tmp_path: Path) -> None:
    """A second graft on a grafted model is a union: the deltas go on in order, off in reverse, and fit no other base."""
    base = load(str(tiny)).model
    one = _folder(load(str(tiny)), _tuned(base), tmp_path / "one")
    options = {"share": 0.05}
    _edit("graft", [one, tiny], tmp_path / "first", options=options, save_delta=True, check=True)
    first = load(str(tmp_path / "first"))
    two = _folder(load(str(tmp_path / "first")), _tuned(first.model, seed=3), tmp_path / "two")
    whole = _folder(load(str(tmp_path / "first")), first.model.state_dict(), tmp_path / "whole")
    _edit("graft", [two, whole], tmp_path / "second", options=options, save_delta=True)
    model, before = load(str(tiny)).model, load(str(tiny)).model.state_dict()
    with pytest.raises(LuthierError, match="another base"):
        apply_delta(model, tmp_path / "second")
    put = [apply_delta(model, tmp_path / n) for n in ("first", "second")]
    masks = [mask_of(first.model.state_dict(), before), mask_of(model.state_dict(), first.model.state_dict())]
    body = sum(t.numel() for n, t in before.items() if "layers" in n)
    assert [sum(int(m.sum()) for m in some.values()) for some in masks] == [int(0.05 * body)] * 2
    for name, tensor in model.state_dict().items():
        outside = ~(masks[0][name] | masks[1][name])
        assert torch.equal(tensor[outside], before[name][outside]), name
    assert 0 < overlap(*masks) < 0.3
    put[1].remove()
    assert all(torch.equal(t, first.model.state_dict()[n]) for n, t in model.state_dict().items())
    put[0].remove()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def _lesson(model: nn.Module) -> Any:
    """A probe whose loss is the distance of one layer's output from where tuning would bring it."""
    from luthier.core.batch import TextExample
    from luthier.core.loop import Collator
    from luthier.core.probe import probe_of
    from luthier.objectives.sft import SFT

    generator = torch.Generator().manual_seed(8)
    rows = [torch.randint(5, 400, (9,), generator=generator).tolist() for _ in range(6)]
    return probe_of(model, SFT(), [TextExample(i, r, [True] * 9) for i, r in enumerate(rows)], Collator(0))


def test_the_graft_is_chosen_within_its_cap_and_leaves_the_model_alone(tiny: Path) -> None:
    """Scores lower the loss below that of the base patch, no graft is larger than `most`, and nothing else moves."""
    base = load(str(tiny)).model
    probe, before = _lesson(base), {n: t.clone() for n, t in base.state_dict().items()}
    names = [n for n, _ in base.named_parameters() if "layers" in n]
    steps = probe.gradients(names)
    tuned = {n: t - 0.5 * steps[n] / steps[n].abs().max() if n in steps else t.clone() for n, t in before.items()}
    body = sum(before[n].numel() for n in names)
    method = Graft(share=0.02, most=0.05, steps=8, rate=0.5, bias=3.0, optim="adam")
    plan = method.plan([tuned, before], base, probe)
    assert all(torch.equal(t, before[n]) for n, t in base.state_dict().items())
    told = method.found(plan)
    assert len(told["steps"]) == 9
    assert told["steps"][0]["entries"] == int(0.02 * body)
    assert all(t["entries"] <= int(0.05 * body) for t in told["steps"])
    assert told["entries"] <= int(0.05 * body)
    losses = [t["loss"] for t in told["steps"]]
    assert min(losses) < losses[0]
    model = load(str(tiny)).model
    model.load_state_dict(method.apply([tuned, before], base, probe))
    assert _lesson(model).loss() == pytest.approx(min(losses), rel=1e-5)
    still = Graft(share=0.02, steps=2, rate=1e-9).plan([tuned, before], base, probe)
    assert "raise edit.rate" in method.found(still)["warning"]


def test_a_graft_says_what_moved_outside(tiny: Path, tmp_path: Path) -> None:
    base = load(str(tiny)).model
    tuned = _tuned(base, only="")
    with pytest.raises(
        LuthierError, match=r"(lm_head|embed_tokens)\.weight' moved in tuning and is no part of a graft"
    ):
        Graft().apply([tuned, base.state_dict()], base)
    same = Graft(share=1.0).apply([base.state_dict(), base.state_dict()], base)
    assert not any(m.any() for m in mask_of(same, base.state_dict()).values())


def test_a_new_head_is_carried_over_and_not_counted() -> None:
    from luthier.checks._models import model_of

    base = model_of("bert-classifier")
    tuned = {n: t + 0.1 if n.startswith("classifier") else t.clone() for n, t in base.state_dict().items()}
    method = Graft(share=0.1)
    plan = method.plan([tuned, base.state_dict()], base)
    assert method.found(plan)["entries"] == 0
    out = method.apply([tuned, base.state_dict()], base)
    assert torch.equal(out["classifier.weight"], tuned["classifier.weight"])


# ------------------------------------------------------------------------------------------------ antidote


DATA = "sandbox:safety?task=leak&part=seen&n=12"


def test_an_adapter_is_pruned_and_stays_an_adapter(tiny: Path, tmp_path: Path) -> None:
    adapter = _adapter(tiny, tmp_path / "adapter", r=8)
    done = _edit("antidote", [adapter], tmp_path / "out", options={"share": 0.25}, data=DATA, check=True)
    assert done.check.passed and done.check.kl > 0
    out, was = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "out", adapter))
    for name, tensor in out.items():
        assert ((tensor == 0).sum(1) == int(0.25 * tensor.shape[1])).all(), name
        assert torch.equal(tensor[tensor != 0], was[name][tensor != 0])
    merged = luthier.merge(tmp_path / "out", tmp_path / "merged")
    assert merged.passed
    again = _edit("antidote", [adapter], tmp_path / "none", options={"share": 1.0}, data=DATA, check=True)
    assert again.found["share"] == 1
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        apart = load(str(tmp_path / "none")).model(ids).logits - load(str(tiny)).model(ids).logits
    assert apart.abs().max() < 1e-6


def test_padding_does_not_count(tiny: Path) -> None:
    """Rows of several lengths give the norms that each row alone gives."""
    from luthier.core.batch import TextExample
    from luthier.core.loop import Collator
    from luthier.core.probe import probe_of
    from luthier.objectives.sft import SFT

    model = load(str(tiny)).model
    rows = [TextExample(i, list(range(5, 5 + n)), [True] * n) for i, n in enumerate((3, 9, 9, 4))]
    name = "model.layers.1.mlp.down_proj"
    found = probe_of(model, SFT(), rows, Collator(0)).input_norms([name])[name]
    squares = torch.zeros_like(found)

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        squares.add_(given[0].double().square().flatten(0, -2).sum(0))

    handle = model.get_submodule(name).register_forward_pre_hook(look)
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.ids]))
    handle.remove()
    assert torch.allclose(found, squares.sqrt(), rtol=1e-5)


def test_adapters_without_such_factors_are_refused(tiny: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    recipe["tuner"], recipe["train"]["max_steps"] = {"name": "ia3"}, 1
    done = luthier.run(recipe, quiet=True)
    with pytest.raises(Refusal, match="factors of LoRA"):
        _edit("antidote", [Path(done.folder)], tmp_path / "out", data=DATA)
    dora = _adapter(tiny, tmp_path / "dora", use_dora=True)
    with pytest.raises(Refusal, match="factors of LoRA"):
        _edit("antidote", [dora], tmp_path / "out", data=DATA)


# ------------------------------------------------------------------------------------------------- configs


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in catalog.entries("edits") if not e.plugin], ids=lambda e: e.name)
def test_every_config_of_an_edit_runs(entry: catalog.Entry, tmp_path: Path) -> None:
    words = ["edit", str(entry.config), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "luthier.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "says the same" in done.stdout
