"""The PEFT benchmark and what it asks of `compare`: pilots, fresh processes, refusals, passes, the front, resuming."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import luthier
from luthier.checks import tuners as battery
from luthier.core import catalog, config, meter
from luthier.core.adapt import as_served
from luthier.core.loop import LoopCallback
from luthier.core.method import LuthierError
from luthier.recipes.peft_benchmark import VARIANTS, PeftBenchmark
from luthier.report.evidence import undominated
from luthier.verbs import _cell
from luthier.verbs.compare import chosen

TIMES = {
    "train_seconds",
    "step_seconds",
    "tokens_per_second",
    "forward_seconds",
    "backward_seconds",
    "serving_overhead",
}
RECIPE = {
    "name": "few",
    "model": "nano-encoder",
    "data": {"train": "sandbox:labels?task=topic_label&n=24"},
    "objective": "classification",
    "procedure": {"name": "peft_benchmark", "methods": ["full", "cpt", "lora", "dept"], "rates": [1e-3, 1e-2],
                  "seeds": 2, "val_size": 8, "pilot_steps": 1, "fresh": False},
    "train": {"max_steps": 2, "per_device_train_batch_size": 8, "torch_threads": 1},
    "evaluate": {"tasks": [{"name": "topic", "scorer": "classification",
                            "data": "sandbox:labels?task=topic_label&split=test&n=12"}]},
    "compare": {"methods": {"full": {"train.learning_rate": 2e-3},
                            "dept": {"tuner.tokens": 2, "tuner.budget": 8, "tuner.max_length": 16,
                                     "compare.pilot.rates": [0.3]}}},
}  # fmt: skip


def _run(folder: Path, **given):
    return luthier.run(RECIPE, overrides={"output_dir": str(folder)}, quiet=True, **given)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    return _run(tmp_path_factory.mktemp("benchmark") / "out")


def _kept(found) -> list[dict]:
    """What two runs of the same benchmark must agree in."""
    cells = []
    for cell in found.told["cells"]:
        results = cell.get("results") or {}
        cost = {k: v for k, v in results.get("cost", {}).items() if k not in TIMES}
        cells.append({**{k: v for k, v in cell.items() if k != "results"}, "cost": cost, "tuned": results.get("tuned")})
    return [*cells, found.told["pilots"], found.told["front"]]


def test_one_folder_with_every_cell(done) -> None:
    told = json.loads((done.folder / "compare.json").read_text())
    assert told["status"] == "done"
    assert done.report.exists()
    assert [(c["method"], c["seed"]) for c in told["cells"]] == [
        (m, s) for s in (0, 1) for m in RECIPE["procedure"]["methods"]
    ]


def test_rates_come_from_the_pilots_unless_named(done) -> None:
    pilots = done.told["pilots"]
    assert set(pilots) == {"cpt", "lora", "dept"}
    losses = pilots["lora"]["held_out_loss"]
    assert list(losses) == ["0.001", "0.01"]
    assert pilots["lora"]["rate"] == float(min(losses, key=losses.get))
    assert pilots["dept"] == {"held_out_loss": pilots["dept"]["held_out_loss"], "rate": 0.3, "edge": None}
    for cell in done.told["cells"]:
        if cell["status"] == "done":
            used = json.loads((done.folder / cell["run"] / "run.json").read_text())["recipe"]
            wanted = 2e-3 if cell["method"] == "full" else pilots[cell["method"]]["rate"]
            assert used["train"]["learning_rate"] == wanted
            assert used["train"]["max_steps"] == 2
            assert used["procedure"] is None
    trial = json.loads((done.folder / "pilot" / "lora-0.01" / "run.json").read_text())
    assert trial["recipe"]["train"]["max_steps"] == 1
    assert [d["rows"] for d in trial["data"]] == [16, 8]


def test_a_best_rate_at_the_edge_is_said(done) -> None:
    assert chosen({1e-3: 2.0, 1e-2: 1.0, 3e-2: 1.5})["edge"] is None
    assert chosen({1e-3: 1.0, 1e-2: 1.5})["edge"] == "the lowest that was tried"
    assert chosen({1e-3: 2.0, 1e-2: 1.5})["edge"] == "the highest that was tried"
    assert chosen({1e-3: 2.0, 1e-2: None}) == {
        "held_out_loss": {"0.001": 2.0, "0.01": None}, "rate": 1e-3, "edge": "the lowest that was tried"
    }  # fmt: skip
    assert chosen({1e-3: None, 1e-2: None})["rate"] is None
    assert done.told["pilots"]["lora"]["edge"]  # of two rates, each is one
    assert "Best rate at the edge" in done.report.read_text()


def test_what_the_model_cannot_take_is_refused_once_and_in_one_line(done) -> None:
    refused = [c for c in done.told["cells"] if c["status"] == "refused"]
    assert [c["method"] for c in refused] == ["cpt", "cpt"]
    assert "does not support encoder models" in refused[0]["error"]
    assert "\n" not in refused[0]["error"]
    assert not (done.folder / "cpt-seed1").exists()
    assert "refused: cpt does not support encoder" in done.table_text()
    assert "left out of the means" not in done.report.read_text()


def test_costs_are_whole(done) -> None:
    for cell in done.told["cells"]:
        if cell["status"] != "done":
            continue
        cost = cell["results"]["cost"]
        assert cost["forward_seconds"] > 0
        assert cost["backward_seconds"] > 0
        tuner = config.recipe(done.told["recipe"], done.told["recipe"]["compare"]["methods"][cell["method"]])
        tuner = config.build("tuners", {**tuner.tuner, "name": cell["method"]}, "tuner")
        base = luthier.load("nano-encoder", "classification").model
        assert cost["trainable_parameters"] - cost["head_parameters"] == tuner.parameter_count(base)
        if tuner.artefact == "model" or "merge" in tuner.capabilities:
            assert cost["serving_overhead"] == 0
        else:
            assert cost["serving_overhead"] != 0
        assert cost["merges"] is (cell["method"] == "lora")
    costs = {m: done.cells(m)[0]["results"]["cost"] for m in ("full", "lora")}
    for key in ("peak_memory_bytes", "optimizer_bytes", "saved_tensor_bytes"):
        assert costs["full"][key] > costs["lora"][key]


def test_settings_of_a_method() -> None:
    """The recipe has the last word, prompts have rates of their own, partial tuners store a difference."""
    told = config.recipe({"model": "nano-1m", "compare": {"methods": {"dept": {"tuner.tokens": 3}}}})
    made = PeftBenchmark(rates=(1e-3, 1e-2))
    assert made.settings("dept", told) == {"compare.pilot.rates": [0.03, 0.3], "tuner.tokens": 3}
    assert made.settings("child_tuning", told) == {"train.save_delta": True, "tuner.variant": "task_driven"}
    assert made.settings("lora", told) == {}


def test_twice_the_same_and_the_same_after_an_interruption(done, tmp_path: Path) -> None:
    class Stop(LoopCallback):
        steps = 0

        def step(self, loop) -> None:
            self.steps += 1
            if self.steps == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "out", callbacks=[Stop()])
    stopped = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert stopped["status"] == "interrupted"
    assert 0 < len(stopped["cells"]) < 8
    first = tmp_path / "out" / "pilot" / "lora-0.001" / "run.json"
    written = first.stat().st_mtime_ns
    again = _run(tmp_path / "out", resume=True)
    assert first.stat().st_mtime_ns == written
    assert _kept(again) == _kept(done)
    assert again.table_text() == done.table_text()


def test_a_cell_in_a_process_of_its_own(done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args, **given):
        raise AssertionError("this process was to run nothing")

    monkeypatch.setattr(_cell, "run", never)
    told = config.recipe(done.told["recipe"], {"compare.fresh": True, "compare.pilot.rates": []})
    told = config.recipe(told, {"train.learning_rate": done.told["pilots"]["lora"]["rate"]})
    apart = luthier.compare(told, methods=["lora"], seeds=1, quiet=True, output_dir=tmp_path / "out")
    here = done.cells("lora")[0]["results"]
    there = apart.cells("lora")[0]["results"]
    assert there["tuned"] == here["tuned"]
    assert {k: v for k, v in there["cost"].items() if k not in TIMES} == {
        k: v for k, v in here["cost"].items() if k not in TIMES
    }
    assert list((tmp_path / "out" / "bases").glob("*/base.json"))
    with pytest.raises(LuthierError, match=r"callbacks cannot follow .* compare\.fresh: false"):
        luthier.compare(told, methods=["lora"], callbacks=[LoopCallback()], output_dir=tmp_path / "other")


def test_a_process_that_dies_is_a_failed_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    one = config.recipe({"model": "nano-encoder", "output_dir": str(tmp_path)})
    found = _cell.attempt_apart(one, bases=tmp_path, resume=False, quiet=True, passes=False)
    assert found == {"status": "failed", "error": "the process of this run died (code 1)"}


def test_a_stop_reaches_the_process_of_a_cell() -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(7)); print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt):
        _cell._heard(child, "")
    assert child.returncode == 7


def test_no_entry_is_lora_under_another_name() -> None:
    """Whoever has LoRA's factors is LoRA or says what it adds; all others train tensors of other names or the base's."""
    assert VARIANTS["qlora"] == {"tuner": "lora", "model.load_in_4bit": True}  # lora by its own name, on another base
    for name in (m for m in PeftBenchmark().methods if m != "qlora"):
        tuner = catalog.load("tuners", name).example()
        world = next(w for w in battery.WORLDS if w.kind in tuner.kinds and (name != "bitfit" or w.kind == "encoder"))
        names = {n for n, p in battery.wrapped(tuner, world).named_parameters() if p.requires_grad}
        ranks = any(".lora_A." in n for n in names)
        assert ranks == (name in ("lora", "dora")), name
        if name == "dora":
            assert any("magnitude" in n for n in names)


def test_the_front_of_many_costs() -> None:
    dice = random.Random(0)
    points = [tuple(dice.randint(0, 4) for _ in range(3)) for _ in range(40)]
    wanted = [
        i for i, p in enumerate(points)
        if not any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points)
    ]  # fmt: skip
    assert undominated(points) == wanted
    assert 0 < len(wanted) < 40
    assert undominated([(1.0, 2.0), (1.0, 2.0)]) == [0, 1]


def test_passes_run_in_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = itertools.count(), []
    monkeypatch.setattr(meter.time, "perf_counter", lambda: float(next(clock)))
    assert meter.in_turns(lambda: order.append("a"), lambda: (order.append("b"), next(clock), next(clock))) == [
        1.0,
        3.0,
    ]
    assert order == ["a", "b"] * 25


def test_served_for_a_while_and_then_trained_on() -> None:
    tuner = catalog.load("tuners", "ept").example()
    world = next(w for w in battery.WORLDS if w.kind == "decoder")
    model = battery.wrapped(tuner, world)
    before = {n: p.clone() for n, p in model.named_parameters()}
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        trained = model(input_ids=ids).logits
        with as_served(tuner, model):
            assert len(list(model.named_parameters())) < len(before)
            served = model(input_ids=ids).logits
    assert torch.allclose(trained, served, atol=1e-5)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(torch.equal(p, before[n]) for n, p in after.items())
