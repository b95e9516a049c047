"""Okapi: from a few seed tasks to instruction data, a reward model and a policy in each of several languages.

    1  tasks      self-instruct from the recipe's rows, in the language `source`                RUN/tasks.jsonl
    2  translate  into each language; pairs that lost numbers, brackets or words are dropped    RUN/LANGUAGE/rows
    3  sft        on the first `sizes.sft` tasks                                                RUN/LANGUAGE/sft
    4  rank       `answers` sampled answers of that model to each of the next `sizes.ranking` tasks: translated back into
                  `source` (turn 1), then ranked there (turn 2); a tenth of the prompts is held out
    5  reward     objective reward on the ranked lists, from the weights of 3                   RUN/LANGUAGE/reward
    6  rlhf       the recipe's objective, tuner and training on the last `sizes.rl` tasks, from the weights of 3, with 5 as
                  reward and 3 as reference                                                     RUN/LANGUAGE/rlhf
    7  table      base, sft, more, free, rlhf for each language and class, judged on `held_out`

    generator   (tasks shown, seed) -> tasks;  translator  (text, source, target) -> text
    ranker      (task, answers, seed) -> ranks, 1 the best, task and answers in `source`
    judge       (rows, answers) -> numbers;  empty: rule scores are left out of the table
                each module:function, kept and counted as `_services.py` says
    prompt, completion   what a task looks like to the models: {language}, {instruction}, {input}, {output}
    held_out    rows of instruction and input (and output) to judge by; {language} in it, and in evaluate.tasks, is the language
    sft, reward   sections `tuner`, `train`, `data`, `objective` of these stages, where they differ
    more        SFT continued from 3 until it was shown as many sequences as 6 trains on
    free        6 without the pull towards the reference, which is still measured
    classes     name -> its languages, for means
    unseen      words in a row of instruction and input: a task that shares as many with a held-out row is dropped
Start:      `procedure: okapi` with an objective of the model's own answers; `rollouts.reward: {model: reward}` stands for the
            language's reward model, and a list may have others beside it. RUN itself is the policy of the first language.
Cost:       a language: sft, reward, rlhf, and the baselines asked for; K answers to each prompt to be ranked.
Paper:      Lai et al., 2023, "Okapi", arXiv:2307.16039, sections 2 and 3.
Departures: what the public scripts set (loss on prompts, 12 and 5 layers unfrozen, a rate of 1e-6) is said in the recipe, not here.
            The reward of an answer that was cut off is lowered (rollouts.missing_eos_penalty).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Self

from luthier.core import config, runs
from luthier.core.config import ConfigError
from luthier.core.config import Recipe as RunRecipe
from luthier.core.functions import function_named
from luthier.core.method import LuthierError, OnlineObjective, Recipe
from luthier.data._self_instruct import Filter, Task, leaked, pairs, ranked_row, self_instruct, translated
from luthier.recipes._services import Service
from luthier.recipes._stages import finished, resumed, stage
from luthier.verbs.load import Loaded, load
from luthier.verbs.rewards import reward_of
from luthier.verbs.run import Prepared, run

SIZES = {"sft": 52_000, "ranking": 42_000, "rl": 64_000}
OWN = "reward"
"""What rollouts.reward calls the reward model of the language."""
STRENGTHS = ("kappa", "beta")
HARDLY = 1e-9
"""Of the pull towards the reference where there is to be none: at 0 nobody would ask how far away it is."""
TAIL = 0.25
"""Share of the rounds, the last ones, that a run's divergence and diversity are the mean of."""
Figures = dict[str, Any]


@dataclass(frozen=True)
class Okapi(Recipe):
    paper: ClassVar[str] = "arXiv:2307.16039"
    cards: ClassVar[tuple[int, ...]] = (49,)

    languages: tuple[str, ...]
    generator: str
    translator: str
    ranker: str
    judge: str = ""
    source: str = "English"
    sizes: dict[str, int] = field(default_factory=lambda: dict(SIZES))
    shown: int = 8
    own: int = 2
    threshold: float = 0.7
    ratio: float = 2.0
    prompt: str = "{instruction}\n{input}\n"
    completion: str = "{output}"
    answers: int = 4
    held_out: Any = None
    unseen: int = 13
    sft: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    more: bool = True
    free: bool = True
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def example(cls) -> Self:
        world = "luthier.sandbox.worlds.errands"
        return cls(("Goko",), f"{world}:generate", f"{world}:translate", f"{world}:rank")

    @classmethod
    def small(cls) -> dict[str, Any]:
        few = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}
        return {
            "procedure.sizes": {"sft": 16, "ranking": 12, "rl": 16}, "procedure.languages": ["Goko", "Poni"],
            "procedure.sft.train": few, "procedure.reward.train": few, "train.per_device_train_batch_size": 4,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------- the whole

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """All stages of all languages into `folder`; okapi.json there holds the table.

        Raises ConfigError for a recipe that does not fit, LuthierError where translation leaves too few tasks.
        """
        self._fits(recipe)
        home, resume = Path(folder), bool(given.get("resume"))
        home.mkdir(parents=True, exist_ok=True)
        services = self._services(home)
        found: Figures = {"languages": {}}
        tasks, found["self_instruct"] = self._tasks(home, recipe, services["generator"], resume, say)
        last = self.languages[0]
        for name in (*self.languages[1:], last):  # the first language's policy, which is the run's own, comes last
            language = _Language(self, name, home / name, recipe, services, say, given)
            told = language.data(tasks, resume)
            language.trained("sft", say)
            told |= language.ranked(resume)
            language.trained(OWN, say)
            told |= language.accuracy()
            for baseline in self.baselines:
                language.trained(baseline, say)
            done = language.trained("rlhf", say, home if name == last else None)
            arms = {arm: language.arm(arm) for arm in ("base", "sft", *self.baselines, "rlhf")}
            found["languages"][name] = {**told, "arms": arms, "rounds": language.curves()}
            say(f"okapi: {name}: {words(arms)}")
        found["languages"] = {name: found["languages"][name] for name in self.languages}
        found["classes"] = self._by_class(found["languages"])
        found["services"] = {name: service.told() for name, service in services.items()}
        runs.write_json(home / "okapi.json", found)
        return done

    @property
    def baselines(self) -> tuple[str, ...]:
        return (*(["more"] if self.more else []), *(["free"] if self.free else []))

    def _fits(self, recipe: RunRecipe) -> None:
        if not self.languages or len(set(self.languages)) < len(self.languages):
            raise ConfigError("recipe: procedure.languages must name at least one language, none of them twice")
        if set(self.sizes) != set(SIZES) or min(self.sizes.values()) < 2:
            raise ConfigError(
                "recipe: procedure.sizes must say how many tasks sft, ranking and rl have, at least two each"
            )
        objective = recipe.method("objectives", "objective")
        if not isinstance(objective, OnlineObjective) or recipe.rollouts is None:
            raise ConfigError("recipe: okapi ends in an objective of the model's own answers, with rollouts: use ppo")
        if OWN not in _models(recipe.rollouts.reward):
            raise ConfigError("recipe: rollouts.reward must have {model: reward}: the reward model that okapi makes")
        if recipe.train.max_steps <= 0:
            raise ConfigError("recipe: okapi counts steps: set train.max_steps")
        if unknown := [n for of in self.classes.values() for n in of if n not in self.languages]:
            raise ConfigError(f"recipe: procedure.classes: '{unknown[0]}' is none of procedure.languages")

    def _services(self, home: Path) -> dict[str, Service]:
        return {
            kind: Service(
                name, function_named(name, f"procedure.{kind}", raises=ConfigError), home / "services" / f"{kind}.jsonl"
            )
            for kind, name in (("generator", self.generator), ("translator", self.translator), ("ranker", self.ranker))
        }

    def _tasks(
        self, home: Path, recipe: RunRecipe, generator: Service, resume: bool, say: Callable[[str], None]
    ) -> tuple[list[Task], dict[str, int]]:
        """Tasks in the source language, seeds left out, and what the filter did."""
        from luthier import data

        told, file = recipe.data, home / "tasks.jsonl"
        counts = home / "self-instruct.json"
        if resume and counts.exists():
            return _read(file), json.loads(counts.read_text(encoding="utf-8"))
        if told.train is None:
            raise ConfigError("recipe: data.train is missing: seed tasks with instruction, input and output")
        seeds = data.read(told.train, columns=told.columns, limit=told.limit, seed=recipe.seed).rows
        if not seeds or any("instruction" not in row or "output" not in row for row in seeds):
            raise LuthierError("okapi: seed tasks need the columns instruction, input and output")
        tasks, kept = self_instruct(
            [{k: str(row.get(k) or "") for k in ("instruction", "input", "output")} for row in seeds], generator,
            sum(self.sizes.values()), seed=recipe.seed, shown=self.shown, own=self.own, keep=Filter(self.threshold, 2),
        )  # fmt: skip
        say(f"okapi: {len(tasks)} tasks from {len(seeds)} seeds: {', '.join(f'{n} {k}' for k, n in kept.items())}")
        runs.write_lines(file, tasks)
        runs.write_json(counts, dict(kept))
        return tasks, dict(kept)

    def row(self, language: str, task: Mapping[str, Any]) -> dict[str, Any]:
        """A task as the models see it."""
        told = {**task, "input": task.get("input") or "", "output": task.get("output") or "", "lang": language}
        shown = {**told, "language": language}
        return {**told, "prompt": self.prompt.format_map(shown), "completion": self.completion.format_map(shown)}

    def _by_class(self, found: Mapping[str, Figures]) -> Figures:
        """Means over the languages of each class, arm by arm."""
        out: Figures = {}
        for name, of in {**self.classes, "all": self.languages}.items():
            arms = [found[n]["arms"] for n in of]
            out[name] = {
                arm: {k: fmean(a[arm][k] for a in arms) for k in arms[0][arm] if all(k in a[arm] for a in arms)}
                for arm in arms[0]
            }
            out[name]["pair_accuracy"] = fmean(found[n]["pair_accuracy"] for n in of)
        return out


@dataclass
class _Language:
    """The stages of one language, in a folder of its own."""

    told: Okapi
    name: str
    place: Path
    recipe: RunRecipe
    services: Mapping[str, Service]
    say: Callable[[str], None]
    given: Mapping[str, Any]
    policy: Path = Path()

    # ------------------------------------------------------------------------------------------------- rows

    def rows(self, part: str) -> Path:
        return self.place / "rows" / f"{part}.jsonl"

    def data(self, given: Sequence[Task], resume: bool) -> Figures:
        """Translated tasks, split into what each stage learns from; counts of what was dropped."""
        counts = self.place / "rows" / "translation.json"
        if resume and counts.exists():
            return {"translation": json.loads(counts.read_text(encoding="utf-8"))}
        ask = self.services["translator"]
        at, dropped, judged = 0, Counter[str](), [_said(row) for row in self.held_out()]
        for part in SIZES:
            size = self.told.sizes[part]
            good, why = translated(
                given[at : at + size], lambda text: ask(text, self.told.source, self.name), self.told.ratio
            )
            rows = [self.told.row(self.name, task) for task in good]
            known = set(leaked(judged, [_said(row) for row in rows], self.told.unseen))
            rows = [row for i, row in enumerate(rows) if i not in known]
            told = {**why, "kept": len(rows), **({"held out": len(known)} if known else {})}
            at, dropped = at + size, dropped + Counter(told)
            if len(rows) < 2:
                raise LuthierError(f"okapi: {self.name}: {len(rows)} of {size} {part} tasks are left: {told}")
            _write(self.rows(part), rows)
        runs.write_json(counts, dict(dropped))
        return {"translation": dict(dropped)}

    def held_out(self) -> list[dict[str, Any]]:
        from luthier import data

        if self.told.held_out is None:
            return []
        return [self.told.row(self.name, row) for row in data.read(self._of_language(self.told.held_out)).rows]

    def _of_language(self, told: Any) -> Any:
        return json.loads(json.dumps(told).replace("{language}", self.name))

    def ranked(self, resume: bool) -> Figures:
        """Lists of the SFT model's answers, ranked in the source language; a tenth of the prompts is held out."""
        counts = self.place / "rows" / "ranking.json"
        if resume and counts.exists():
            return {"ranking": json.loads(counts.read_text(encoding="utf-8"))}
        rows, K = _read(self.rows("ranking")), self.told.answers
        said = self.write(load(str(self.place / "sft")), [r["prompt"] for r in rows for _ in range(K)], sampled=True)
        lists = []
        for i, row in enumerate(rows):
            answers = [text for text, _ in said[i * K : i * K + K]]
            if (found := ranked_row(row["prompt"], answers, self._ranks(row, answers))) is not None:
                lists.append(found)
        held = max(1, round(0.1 * len(lists)))
        if len(lists) < 2:
            raise LuthierError(
                f"okapi: {self.name}: the ranker tells the answers of {len(lists)} prompts apart: ask more"
            )
        _write(self.rows("ranked-held-out"), lists[:held])
        _write(self.rows("ranked"), lists[held:])
        told = {"prompts": len(rows), "told_apart": len(lists), "pairs": sum(len(pairs(x["ranks"])) for x in lists)}
        runs.write_json(counts, told)
        return {"ranking": told}

    def _ranks(self, row: Mapping[str, Any], answers: Sequence[str]) -> list[float]:
        """Two turns: back into the source language, then a ranking."""
        source, back = self.told.source, self.services["translator"]
        task = {k: back(row[k], self.name, source) if row.get(k) else "" for k in ("instruction", "input")}
        ranks = self.services["ranker"](task, [back(a.strip(), self.name, source) for a in answers], self.recipe.seed)
        if len(ranks) != len(answers):
            raise LuthierError(f"{self.told.ranker} gave {len(ranks)} ranks for {len(answers)} answers")
        return [float(r) for r in ranks]

    # ----------------------------------------------------------------------------------------------- stages

    def trained(self, arm: str, say: Callable[[str], None], run_folder: Path | None = None) -> Any:
        """One stage; `run_folder` where the whole run's folder is to be its."""
        place = run_folder or self.place / arm
        if arm == "rlhf":
            self.policy = place
        one = self.stage(arm, place)
        ended = run_folder is not None
        if not ended and self.given.get("resume") and finished(place, one):
            return None
        say(f"okapi: {self.name}: {arm}")
        again = resumed(place, self.given.get("resume"))
        if not ended:
            return run(one, **{**self.given, "resume": again, "bases": None})
        change: Callable[[Prepared], Prepared] = lambda made: replace(made, told=self.recipe)  # noqa: E731
        return run(one, change=change, **{**self.given, "resume": again})

    def stage(self, arm: str, place: Path) -> RunRecipe:
        told, recipe = self.told, self.recipe
        common: Figures = {"output_dir": str(place), "name": f"{recipe.name or 'okapi'}: {self.name}, {arm}"}
        nothing: Figures = {"evaluate": {"drift": False}, "rollouts": None, "compare": {}}
        sft = {"model": {**recipe.model.model_dump(exclude_unset=True), "model_name_or_path": str(self.place / "sft")}}
        keys = recipe.train.model_dump(exclude_unset=True)

        def supervised(objective: str, own: Mapping[str, Any], file: Path) -> Figures:
            return {
                "objective": _named(own.get("objective", objective)), "tuner": _named(own.get("tuner", "full")),
                "train": {**keys, "save_delta": False, **own.get("train", {})},
                "data": {**own.get("data", {}), "train": str(file)},
            }  # fmt: skip

        if arm == "sft":
            return stage(recipe, **common, **nothing, **supervised("sft", told.sft, self.rows("sft")))
        if arm == "more":
            parts = supervised("sft", told.sft, self.rows("sft"))
            assert recipe.rollouts is not None
            shown = recipe.train.max_steps * _rows_a_step(keys) * recipe.rollouts.answers
            parts["train"] |= {"max_steps": math.ceil(shown / _rows_a_step(parts["train"]))}
            return stage(recipe, **common, **nothing, **sft, **parts)
        if arm == OWN:
            return stage(recipe, **common, **nothing, **sft, **supervised(OWN, told.reward, self.rows("ranked")))
        rollouts = recipe.rollouts
        assert rollouts is not None
        judged = {**rollouts.model_dump(exclude_unset=True), "reward": _with_model(rollouts.reward, self.place / OWN)}
        parts = {"data": {"train": str(self.rows("rl"))}, "rollouts": judged}
        if arm == "free":
            has = {f.name for f in fields(recipe.method("objectives", "objective"))}
            pulls = {k: HARDLY for k in STRENGTHS if k in has} | ({"target": None} if "target" in has else {})
            parts |= {"objective": {**recipe.objective, **pulls}, "evaluate": {"drift": False}}
        else:
            evaluate = recipe.evaluate.model_dump(exclude_unset=True)
            parts["evaluate"] = {**evaluate, "tasks": self._of_language(evaluate.get("tasks", []))}
        return stage(recipe, **common, **sft, **parts)

    # ---------------------------------------------------------------------------------------------- measuring

    def write(self, loaded: Loaded, prompts: Sequence[str], sampled: bool = False) -> list[tuple[str, bool]]:
        """An answer to each prompt, drawn from the model's own distribution or its likeliest, and whether it ended."""
        told = self.recipe.rollouts
        assert told is not None
        decoder = config.build("decoding", {"name": "nucleus", "temperature": 1.0, "top_p": 1.0}, "okapi")
        subject = loaded.subject(decoder if sampled else None, self.recipe.seed)
        ids = [subject.encode(p) for p in prompts]
        said = subject.generations(ids, told.max_new_tokens, told.stop, self.recipe.seed)
        texts = [loaded.tokenizer.decode(g.ids, skip_special_tokens=True) for g in said]
        return [
            (min((t.split(s)[0] for s in told.stop), key=len, default=t), g.stopped)
            for t, g in zip(texts, said, strict=True)
        ]

    def accuracy(self) -> Figures:
        """Share of held-out pairs, prompts alike, in whose order the reward model puts them."""
        reward, right = reward_of({"model": str(self.place / OWN)}), []
        for row in _read(self.rows("ranked-held-out")):
            r = reward([{"prompt": row["prompt"]}] * len(row["completions"]), row["completions"])
            right.append(fmean(float(r[i] > r[j]) for i, j in pairs(row["ranks"])))
        self.say(f"okapi: {self.name}: the reward model is right on {fmean(right):.3f} of held-out pairs")
        return {"pair_accuracy": fmean(right)}

    def arm(self, arm: str) -> Figures:
        """What a model writes to the rows that are held out, sampled and (`best`) its likeliest; tokens it was tuned on."""
        place = {"base": None, "rlhf": self.policy}.get(arm, self.place / arm)
        loaded = load(self.recipe.model if place is None else str(place))
        out: Figures = {} if place is None else {"tokens": runs_tokens(place)}
        rows = self.held_out()
        if rows:
            judge = function_named(self.told.judge, "procedure.judge", raises=ConfigError) if self.told.judge else None
            reward = reward_of({"model": str(self.place / OWN)})
            for kind, sampled in (("", True), ("_best", False)):
                said = self.write(loaded, [r["prompt"] for r in rows], sampled)
                texts = [text for text, _ in said]
                out[f"cut_off{kind}"] = 1 - fmean(ended for _, ended in said)
                out[f"reward{kind}"] = fmean(reward(rows, texts))
                out |= {f"rule{kind}": fmean(judge(rows, texts))} if judge else {}
        if arm in ("free", "rlhf"):
            rounds = self.rounds(arm)
            last = rounds[-max(1, round(TAIL * len(rounds))) :]
            out |= {k: fmean(r[k] for r in last) for k in ("kl", "distinct_2") if all(k in r for r in last)}
        return out

    def rounds(self, arm: str) -> list[Figures]:
        """What each round of answers was like."""
        folder = self.policy if arm == "rlhf" else self.place / arm
        names = {"completions/distinct_2": "distinct_2", "completions/clipped_ratio": "cut_off"}
        keep = ("step", "reward", "kl", "kappa", *names)
        return [
            {names.get(k, k): row[k] for k in keep if k in row}
            for row in _read(folder / "metrics.jsonl")
            if "reward" in row
        ]

    def curves(self) -> Figures:
        return {arm: self.rounds(arm) for arm in ("free", "rlhf") if arm in ("rlhf", *self.told.baselines)}


# --------------------------------------------------------------------------------------------------- helpers


def words(arms: Mapping[str, Figures]) -> str:
    said = [
        ", ".join(f"{k} {a[k]:.3f}" for k in ("rule", "reward", "kl", "distinct_2") if k in a) for a in arms.values()
    ]
    return "; ".join(f"{arm} {text}" for arm, text in zip(arms, said, strict=True) if text)


def runs_tokens(folder: Path) -> int:
    """Tokens that passed through the model in training."""
    return int(json.loads((folder / "results.json").read_text(encoding="utf-8"))["cost"]["tokens"])


def _said(row: Mapping[str, Any]) -> str:
    return f"{row['instruction']} {row['input']}"


def _named(told: Any) -> dict[str, Any]:
    return {"name": told} if isinstance(told, str) else told


def _rows_a_step(train: Mapping[str, Any]) -> int:
    told = config.TrainSettings.model_validate(train)
    return told.per_device_train_batch_size * told.gradient_accumulation_steps


def _models(reward: Any) -> list[Any]:
    """Models that rollouts.reward names."""
    parts = reward if isinstance(reward, list) else [reward]
    return [part["model"] for part in parts if isinstance(part, dict) and "model" in part]


def _with_model(reward: Any, folder: Path) -> Any:
    """rollouts.reward with the folder of the language's reward model."""
    if isinstance(reward, list):
        return [_with_model(part, folder) for part in reward]
    own = isinstance(reward, dict) and reward.get("model") == OWN
    return {**reward, "model": str(folder)} if own else reward


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    runs.write_lines(file, rows)
