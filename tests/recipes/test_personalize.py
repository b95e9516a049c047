"""Personalisation: splits without leaks, what is stored and measured, what validation chooses, going on after a stop."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import luthier
from luthier.core import catalog, config, meter
from luthier.core.delta import read_about
from luthier.core.loop import LoopCallback
from luthier.core.method import LuthierError
from luthier.data import read
from luthier.evaluation._code import fingerprint
from luthier.recipes._projects import PARTS, by_project, of_projects, paired, split_project, without_duplicates
from luthier.recipes._summary import Cell, Summary, _break_even
from luthier.recipes.personalize import SCHEMES, Personalize
from luthier.report import write_personalize_report

ROWS = "sandbox:projects?part=personal&n=500"


# ---------------------------------------------------------------------------------------------------- splits


def told_code(row: dict) -> str:
    return fingerprint(f"{row['prompt']}\n{row['completion']}")


def test_no_file_and_no_near_duplicate_is_on_two_sides() -> None:
    tables = by_project(read(ROWS), "project")
    assert len(tables) == 6
    for name, table in tables.items():
        one = split_project(name, table, "file", (0.1, 0.1), 0)
        rows = [r for part in PARTS for r in one.parts[part]]
        assert len(rows) + one.duplicates == len(table)
        assert one.duplicates > 0
        assert len({told_code(r) for r in rows}) == len(rows)
        files = [{r["file"] for r in one.parts[part]} for part in PARTS]
        assert all(files) and not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]
        assert len(one.parts["train"]) > 0.7 * len(rows)
        assert one == split_project(name, table, "file", (0.1, 0.1), 0)
        assert one.parts != split_project(name, table, "file", (0.1, 0.1), 1).parts


def test_a_renamed_copy_is_a_duplicate_and_another_body_is_not() -> None:
    rows = [
        {"prompt": "def f(x): return x + 1", "completion": "assert f(1) == 2", "project": "a", "file": "one"},
        {"prompt": "def g(y):  return y + 5", "completion": "assert g(5) == 10", "project": "a", "file": "two"},
        {"prompt": "def f(x): return x - 1", "completion": "assert f(1) == 2", "project": "a", "file": "two"},
    ]
    table = read("sandbox:projects?n=3")
    table.rows = rows
    assert without_duplicates(table).rows == [rows[0], rows[2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project": None}, r"projects\[1\]: no 'project' in this row: procedure.project names"),
        ({"completion": ["x"]}, "must be texts"),
    ],
)
def test_rows_that_cannot_be_used_are_errors(change: dict, message: str) -> None:
    table = read("sandbox:projects?n=40")
    table.rows[1] = {**table.rows[1], **change}
    with pytest.raises(LuthierError, match=message):
        _ = [split_project(name, t, "file", (0.1, 0.1), 0) for name, t in by_project(table, "project").items()]


def test_mistakes_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = {"model": "nano-1m", "data": {"train": "sandbox:projects?n=600"}, "output_dir": str(tmp_path / "x")}
    for options, message in (
        ({"projects": ["harbor"]}, "did you mean 'harbour'"),
        ({"val_size": 0.6, "test_size": 0.5}, "leave some to train on"),
        ({"file": "project"}, "rows of 1 files"),
        ({"projects": [], "generic": {}}, "at least two projects that are not personalised"),
    ):
        with pytest.raises((LuthierError, config.ConfigError), match=message):
            luthier.run({**recipe, "procedure": {"name": "personalize", **options}}, quiet=True)


# -------------------------------------------------------------------------------------------------- operations


def hand_count(layers: int, scheme: str) -> tuple[int, int]:
    """Forward and backward operations of a step of T tokens, product by product."""
    T, D, wide, V = 6, 16, 24, 40
    block, attention, head = 2 * T * (4 * D * D + 3 * D * wide), 4 * T * T * D, 2 * T * D * V
    forward = layers * (block + attention) + head
    if scheme == "custom":
        return forward, 2 * forward
    # gradients of inputs and weights of one block, of the inputs of the head, and nothing below
    return forward, 2 * (block + attention) + head


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("scheme", ["custom", "last_block"])
def test_operations_by_hand(scheme: str, layers: int) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 40}
    told = LlamaConfig(**sizes, num_hidden_layers=layers, tie_word_embeddings=False, attn_implementation="eager")
    tuner = config.build("tuners", SCHEMES[scheme]["tuner"], "tuner")
    model = tuner.wrap(LlamaForCausalLM(told), "causal_lm").train()
    ids = torch.arange(6)[None]
    cost = meter.step_cost(model, lambda: model(input_ids=ids, labels=ids).logits.square().mean(), 6, 6)
    assert (cost.forward_flops, cost.backward_flops) == hand_count(layers, scheme)


# ------------------------------------------------------------------------------------------------- the procedure


class StopAt(LoopCallback):
    """Ctrl-C at the n-th step of all runs together."""

    def __init__(self, n: int):
        self.left = n

    def step(self, loop) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def small(folder: Path) -> dict:
    recipe = {"model": "nano-1m", "procedure": "personalize", "output_dir": str(folder)}
    recipe["train"] = {"per_device_train_batch_size": 4, "torch_threads": 1}
    recipe["evaluate"] = {"drift": False}
    told = Personalize.small()
    told["compare.methods"] = {
        **told["compare.methods"], "last_block": {"train.learning_rate": 1e-3},
        "embeddings_output": {"train.learning_rate": 1e-3},
    }  # fmt: skip
    told["data.train"] = ["sandbox:projects?n=120", "sandbox:projects?part=generic&n=40"]
    told["procedure.generic"] = {"train.max_steps": 1}
    return config.recipe(recipe, told).model_dump(exclude_unset=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    return luthier.run(small(tmp_path_factory.mktemp("personal") / "run"), quiet=True)


def untimed(value):
    """Without what a clock says."""
    if isinstance(value, dict):
        return {
            k: untimed(v) for k, v in value.items() if "seconds" not in k and k not in ("tokens_per_second", "base")
        }
    return [untimed(v) for v in value] if isinstance(value, list) else value


def test_a_whole_run_folder(done) -> None:
    manifest = json.loads((done.folder / "run.json").read_text())
    assert manifest["status"] == "done"
    assert {"base", "tuned", "paired", "cost"} <= set(json.loads((done.folder / "results.json").read_text()))
    assert done.report.exists()
    told = json.loads((done.folder / "personalize.json").read_text())
    assert told["status"] == "done"
    assert len(told["cells"]) == 2 * 4
    assert not list(done.folder.rglob("checkpoint-*"))
    entry = done.results["tuned"]["perplexity"]["perplexity"]
    assert (entry["n"], entry["higher_is_better"]) == (2, False)
    assert "Wilcoxon" in done.results["paired"]["perplexity"]["perplexity"]["test"]


def test_a_delta_holds_what_its_scheme_moves_and_gives_the_tuned_model(done) -> None:
    """And the base under it is that of stage 0, which the delta gives back when it is taken off."""
    stage = luthier.load(str(done.folder / "stage-0")).model.state_dict()
    told = json.loads((done.folder / "personalize.json").read_text())
    stored = {}
    for cell in (c for c in told["cells"] if c["project"] == "harbour"):
        run = done.folder / cell["run"]
        stored[cell["scheme"]] = json.loads((run / "results.json").read_text())["cost"]["stored_bytes"]
        if cell["scheme"] == "prefix":
            assert (run / "adapter" / "adapter_config.json").exists()
            continue
        moved = set(read_about(run / "delta")["tensors"])
        block = {n for n in stage if n.startswith("model.layers.3.")}
        wanted = {
            "custom": {n for n in stage if n != "lm_head.weight"}, "last_block": block,
            "embeddings_output": {"model.embed_tokens.weight"},
        }  # fmt: skip
        assert moved <= wanted[cell["scheme"]]
        loaded = luthier.load(str(run))
        assert all(torch.equal(t, stage[n]) == (n not in moved) for n, t in loaded.model.named_parameters())
        loaded.delta.remove()
        assert all(torch.equal(t, stage[n]) for n, t in loaded.model.state_dict().items())
    assert stored["prefix"] < stored["last_block"] < stored["custom"] > stored["embeddings_output"]


def test_runs_stop_on_validation_rows_and_are_measured_on_test_rows(done) -> None:
    told = json.loads((done.folder / "personalize.json").read_text())
    for cell in told["cells"]:
        run = json.loads((done.folder / cell["run"] / "run.json").read_text())
        rows = f"projects/{cell['project']}/rows"
        assert [d["source"].split(f"{rows}/")[1] for d in run["data"]] == ["train.jsonl", "validation.jsonl"]
        assert run["recipe"]["train"]["load_best_model_at_end"]
        assert run["recipe"]["train"]["early_stopping_patience"] == 3
        tasks = {t["name"]: t for t in run["recipe"]["evaluate"]["tasks"]}
        assert all("test.jsonl" in t["data"] for t in tasks.values())
        assert set(tasks) == {"perplexity", "style", "on_bakery" if cell["project"] == "harbour" else "on_harbour"}
    parts = [read(str(f)).rows for f in sorted((done.folder / "projects" / "harbour" / "rows").glob("*.jsonl"))]
    files = [{r["file"] for r in rows} for rows in parts]
    assert sum(map(len, files)) == len(set().union(*files))
    generic = {r["project"] for f in (done.folder / "stage-0" / "rows").glob("*.jsonl") for r in read(str(f)).rows}
    assert generic and not generic & {"harbour", "bakery"}


def test_the_folder_loads_as_the_first_project_by_the_chosen_scheme(done) -> None:
    told = json.loads((done.folder / "personalize.json").read_text())
    scheme = told["chosen"]["scheme"]
    losses = {
        s: [c["validation"] for c in told["cells"] if c["scheme"] == s] for s in told["schemes"]
    }  # fmt: skip
    assert scheme == min(losses, key=lambda s: sum(losses[s]))
    one = luthier.load(str(done.folder / "projects" / "harbour" / f"{scheme}-seed0"))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), done.loaded.model.parameters(), strict=True))
    assert done.results["cost"]["stored_bytes"] == sum(
        json.loads((done.folder / "projects" / p / f"{scheme}-seed0" / "results.json").read_text())["cost"][
            "stored_bytes"
        ]
        for p in ("harbour", "bakery")
    )


def test_the_matrix_is_perplexity_with_and_without_the_delta(done) -> None:
    told = json.loads((done.folder / "personalize.json").read_text())
    cell = json.loads((done.folder / "projects/harbour/custom-seed0/results.json").read_text())
    own, other = told["matrix"]["custom"][0]
    for ratio, task in ((own, "perplexity"), (other, "on_bakery")):
        tuned, base = (cell[side][task]["perplexity"]["value"] for side in ("tuned", "base"))
        assert ratio == pytest.approx(tuned / base)
    assert own < 1


def test_stopped_in_the_middle_and_continued_it_ends_the_same(done, tmp_path: Path) -> None:
    recipe = small(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        luthier.run(recipe, quiet=True, callbacks=[StopAt(6)])
    folder = tmp_path / "run"
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    with pytest.raises(LuthierError, match="--resume"):
        luthier.run(recipe, quiet=True)
    with pytest.raises(LuthierError, match="is not that of the run to resume"):
        luthier.run(recipe, overrides={"seed": 5}, quiet=True, resume=True)
    first = (folder / "projects/harbour/custom-seed0/results.json").stat().st_mtime_ns
    again = luthier.run(recipe, quiet=True, resume=True)
    assert (folder / "projects/harbour/custom-seed0/results.json").stat().st_mtime_ns == first
    assert untimed(again.results) == untimed(done.results)
    mine, theirs = (json.loads((f / "personalize.json").read_text()) for f in (folder, done.folder))
    for key in ("table", "pairs", "matrix", "chosen", "projects"):
        assert untimed(mine[key]) == untimed(theirs[key]), key


# ---------------------------------------------------------------------------------------------------- summary


def cell(project: str, scheme: str, value: float, validation: float, base: float = 10.0, **cost: float) -> Cell:
    """A run whose perplexity on own rows is `value`, and 2 * base on the others'."""

    def entry(v: float) -> dict:
        return {"perplexity": {"value": v, "higher_is_better": False}}

    others = [p for p in "abc" if p != project]
    told = {"train_flops": 1e12, "steps": 10, "train_seconds": 2.0, "forward_flops": 1, "backward_flops": 2} | cost
    about = {"title": "t", "group": "target", "metric": "perplexity"}
    results = {
        "tasks": {"perplexity": about, **{f"on_{p}": {**about, "group": "retention"} for p in others}},
        "base": {"perplexity": entry(base), **{f"on_{p}": entry(base) for p in others}},
        "tuned": {"perplexity": entry(value), **{f"on_{p}": entry(2 * base) for p in others}},
        "cost": {"stored_bytes": 2**20, "trainable_parameters": 5, **told},
    }
    return Cell(project, scheme, 0, Path("x"), "done", "", results, validation, 5)


def test_validation_chooses_whatever_the_test_rows_say() -> None:
    cells = [cell(p, "good", 2.0, 1.0) for p in "abc"] + [cell(p, "chosen", 5.0, 0.5) for p in "abc"]
    summary = Summary(list("abc"), ["good", "chosen"], cells)
    assert summary.chosen() == "chosen"
    assert summary.matrix("good") == [[0.2, 2, 2], [2, 0.2, 2], [2, 2, 0.2]]
    sheet = {row["scheme"]: row for row in summary.costs()}
    assert sheet["good"]["gain"] == 8.0
    assert sheet["good"]["flops_to_best"] == 5e11  # the best step was the fifth of ten
    assert sheet["good"]["gain_per_pflop"] == pytest.approx(8 / 0.0005)
    assert sheet["good"]["gain_per_mib"] == 8.0
    assert (sheet["good"]["own_ratio"], sheet["good"]["other_ratio"]) == (pytest.approx(0.2), 2.0)
    (pair,) = summary.pairs()
    assert (pair["a"], pair["effect"], pair["difference"]) == ("good", 1.0, -3.0)


def test_a_scheme_counts_where_all_projects_ended() -> None:
    cells = [cell(p, "whole", 5.0, 0.9) for p in "abc"] + [cell(p, "part", 1.0, 0.1) for p in "ab"]
    cells.append(Cell("c", "part", 0, Path("x"), "failed", "Diverged: loss"))
    assert Summary(list("abc"), ["part", "whole"], cells).schemes == ["whole"]
    with pytest.raises(LuthierError, match="the first with c, part: Diverged: loss"):
        _ = Summary(list("abc"), ["part"], cells).schemes


def test_break_even_is_what_a_further_unit_buys() -> None:
    rows = [{"gain": g, "x": c} for g, c in ((5.0, 1.0), (9.0, 3.0), (8.0, 4.0), (10.0, 13.0))]
    _break_even(rows, "x")
    assert [r["x_step"] for r in rows] == [5.0, 2.0, None, 0.1]


def test_figures_over_projects() -> None:
    base, tuned = [1.0, 2.0, None, 3.0, 4.0, 5.0, 6.0], [0.5, 1.0, 9.0, 2.0, 3.5, 4.0, 5.0]
    found = paired(base, tuned, up=False)
    assert (found["n"], found["effect"], found["verdict"]) == (6, 1.0, "better")
    assert found["p"] == pytest.approx(2 / 2**6)
    assert paired(base, tuned, up=True)["verdict"] == "worse"
    assert of_projects([None, 2.0, 4.0], True)["value"] == 3.0
    assert of_projects([None], True)["value"] is None
    assert paired([None], [1.0], True)["p"] is None


def test_the_report_escapes_and_shows_what_is_missing(tmp_path: Path) -> None:
    assert "personalize.json is missing" in write_personalize_report(tmp_path).read_text()
    cells = [cell(p, "<b>full</b>", 2.0, 1.0) for p in "abc"]
    cells.append(Cell("c", "failed", 0, Path("x"), "failed", "it <broke>"))
    summary = Summary(list("abc"), ["<b>full</b>", "failed"], cells)
    told = {"name": "x", "status": "done", **summary.told("<b>full</b>", "a"), "projects": {p: {} for p in "abc"}}
    (tmp_path / "personalize.json").write_text(json.dumps(told))
    page = write_personalize_report(tmp_path).read_text()
    assert "<b>full</b>" not in page and "&lt;b&gt;full&lt;/b&gt;" in page
    assert "Without a result: c by failed" in page
    assert "cannot give a p below 0.25 with 3" in page
    assert page == write_personalize_report(tmp_path).read_text()


def test_every_default_scheme_is_known() -> None:
    told = config.recipe({"model": "nano-1m", "procedure": "personalize"})
    found = Personalize().schemes(told)
    assert list(found) == ["custom", "embeddings_output", "last_block", "prefix", "lora"]
    assert {s: c["train.save_delta"] for s, c in found.items()} == {
        "custom": True, "embeddings_output": True, "last_block": True, "prefix": False, "lora": False,
    }  # fmt: skip
    assert catalog.load("recipes", "personalize") is Personalize
