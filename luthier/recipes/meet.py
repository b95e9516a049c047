"""MEET: controls for good and bad answers are learned with the model frozen, then the model under them; the good one is used.

    stage 1   min_theta       - sum_i log p_phi(y_i | x_i, theta_{c_i})        theta_c a control for label c, the model phi frozen
    stage 2   min_phi,theta   the same from there                              phi at the recipe's rate, theta at `ratio` times it
    use       p_phi(y | x, theta_good), another control, a mixture of them, or a contrast of two

    tuner    what a control is: {name: control_prompts, labels: [good, bad], by: label, ...} or {name: control_lora, ...}
    train    keys of `train` that differ in stage 1. Its rate is the tuner's own where nothing is said here
    ratio    rate of the controls in stage 2 over the model's; 0: they stand still. With 1 they hardly move
    balance  rows of rarer labels are repeated until every label has as many; else the frequent one becomes the default
    mode     two_stages; and to compare, by `train` of the recipe alone:
             joint    controls, as they are drawn, and model together: at one rate (ratio 1) or two. A special token is one vector
             text     tuner.texts in front of the rows in place of controls, the model tuned
             controls stage 1 alone, its `train` keys on top of the recipe's; all tasks are measured under the first control
             chosen   the model tuned on rows of the first label, without controls
             pairs    DPO on the pairs
Rows:       pairs (prompt, chosen, rejected), of which each becomes two rows: chosen under the first label, rejected under the
            second; judged answers (prompt, completion, label: true or false), likewise; or any rows with the column `by`.
Start:      `procedure: meet` with a recipe whose `tuner` tunes the model's own tensors (full by default). Where rows are held out,
            both stages keep the checkpoint with the least loss on them.
Result:     RUN is the tuned model without a control, RUN/controls the same model with all of them, the first in use: `luthier
            generate RUN/controls PROMPT --control bad`, `--control good=0.7,bad=0.3`. logits_good + w (logits_good - logits_bad):
            `--decoding contrast --beta w --alpha 0 --amateur.model_name_or_path RUN/controls --amateur.control bad`. Tasks of group
            target are measured under the first control, all others without. RUN/stage-1 is the run of stage 1.
            meet.json, where rows are held out: nats a token of the rows of each label under each control and without (with what
            the untuned model says beside), and of them
                nll        under their own control
                swap_cost  under the next label's control, less that
                reliance   mean KL of next tokens under their own control from those under the next label's
Paper:      Xue et al., 2023, "Parameter-Efficient Tuning Helps Language Model Alignment", arXiv:2310.00819.
Departures: sizes and rates are usual ones, as the paper's were not at hand. Controls of several attributes at once are not
            concatenated. The gradient is clipped as a whole, not that of the controls by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from luthier.core import config, runs
from luthier.core.batch import Example, GroupExample, TextExample
from luthier.core.config import ConfigError
from luthier.core.config import Recipe as RunRecipe
from luthier.core.logprobs import Scorer, kl
from luthier.core.loop import Collator
from luthier.core.method import LuthierError, PartialTuner, Recipe
from luthier.core.subject import at_rest
from luthier.recipes._behind import Behind, MeasuredBehind, drawn, from_folders, write_beside
from luthier.recipes._stages import best_kept, finished, resumed, stage
from luthier.tuners._controls import ControlTuner, label_of
from luthier.verbs.run import Prepared, RunResult, run

ALSO = ("preference", "unpaired")
"""Row types that are taken apart into one row for each answer."""
NONE = "none"
"""In place of a control in tables: without one."""


@dataclass(frozen=True)
class MEET(Recipe):
    paper: ClassVar[str] = "arXiv:2310.00819"
    cards: ClassVar[tuple[int, ...]] = (43,)

    tuner: dict[str, Any] = field(default_factory=lambda: {"name": "control_prompts"})
    train: dict[str, Any] = field(default_factory=dict)
    ratio: float = 10.0
    balance: bool = False
    mode: Literal["two_stages", "joint", "text", "controls", "chosen", "pairs"] = "two_stages"

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {"procedure.train.max_steps": 3}

    # ------------------------------------------------------------------------------------------- the whole

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> RunResult:
        """All stages into `folder`. Raises LuthierError for a tuner, an objective or rows that do not fit."""
        controls = self._fits(recipe)
        home = Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        last = {**given, "resume": resumed(folder, given.get("resume"))}
        if self.mode == "controls":
            return self._last(home, self._first(recipe, controls, folder), recipe, controls, say, last)
        if self.mode == "pairs":
            told = stage(recipe, output_dir=folder, objective={"name": "dpo"})
            return self._last(home, told, recipe, controls, say, last)
        told = stage(recipe, output_dir=folder, **self._keys(recipe, recipe.train, controls, 10))
        if self.mode in ("text", "chosen"):
            return self._last(home, told, recipe, controls, say, last)
        told.train.cache_frozen_layers = False  # kept states know of no control
        start = self._start(home, recipe, controls, say, given)
        return self._last(home, told, recipe, controls, say, last, start)

    def _fits(self, recipe: RunRecipe) -> ControlTuner:
        controls, inner = config.build("tuners", self.tuner, "procedure.tuner"), recipe.method("tuners", "tuner")
        if not isinstance(controls, ControlTuner):
            raise ConfigError(
                f"recipe: procedure.tuner '{controls.name}' has no controls: use control_prompts or control_lora"
            )
        if len(controls.labels) < 2:
            raise ConfigError("recipe: procedure.tuner.labels: one label leaves nothing to control")
        if not isinstance(inner, PartialTuner):
            raise ConfigError(
                f"recipe: tuner '{inner.name}' leaves the model's own tensors alone: meet tunes them under the controls; use full, "
                "hft, freeze, ..."
            )
        if recipe.method("objectives", "objective").task != "causal_lm":
            raise ConfigError("recipe: meet needs an objective of text that a model writes, as sft")
        if self.mode == "text" and not self._texts(controls):
            raise ConfigError(f"recipe: procedure.tuner.texts: give one for each of {', '.join(controls.labels)}")
        if recipe.train.cache_frozen_layers is True:
            raise ConfigError("recipe: train.cache_frozen_layers does not go with meet: remove the key")
        if self.ratio < 0:
            raise ConfigError(f"recipe: procedure.ratio is {self.ratio}: give 0 or more")
        return controls

    @staticmethod
    def _texts(controls: ControlTuner) -> tuple[str, ...]:
        return getattr(controls, "texts", ())

    def _keys(
        self, recipe: RunRecipe, train: config.TrainSettings, controls: ControlTuner, looks: int
    ) -> dict[str, Any]:
        """Training keys that keep the checkpoint with the least held-out loss, and data keys that keep the labels."""
        from luthier import data

        told = recipe.data
        if told.train is None:
            return {}
        table = data.read(told.train, columns=told.columns, template=told.template, limit=told.limit, seed=recipe.seed)
        keep = [*told.keep, *([controls.by] if controls.by in table.columns else [])]
        keys = best_kept(recipe, train, looks)
        return {"train": keys, "data": {**told.model_dump(exclude_unset=True), "keep": keep}}

    # --------------------------------------------------------------------------------------------- stage 1

    def _first(self, recipe: RunRecipe, controls: ControlTuner, folder: str) -> RunRecipe:
        """The recipe of the controls, the model frozen."""
        keys = {"learning_rate": controls.learning_rate, **self.train, "save_delta": False}
        train = config.TrainSettings.model_validate({**recipe.train.model_dump(exclude_unset=True), **keys})
        return stage(recipe, output_dir=folder, tuner=self.tuner, **self._keys(recipe, train, controls, 5))

    def _start(
        self,
        home: Path,
        recipe: RunRecipe,
        controls: ControlTuner,
        say: Callable[[str], None],
        given: Mapping[str, Any],
    ) -> Path:
        """The folder of the controls that the model is tuned under."""
        if self.mode == "joint":
            return drawn(home / "start", self.tuner, recipe)
        place = home / "stage-1"
        told = stage(
            self._first(recipe, controls, str(place)), evaluate={"drift": False}, analysis=None,
            name=f"{recipe.name or 'meet'}: stage 1",
        )  # fmt: skip
        if not (given.get("resume") and finished(place, told)):
            say(f"meet: stage 1: controls for {', '.join(controls.labels)}, the model frozen")
            more = {**given, "resume": resumed(place, given.get("resume")), "bases": None}
            run(told, change=partial(self._rows, controls), also=ALSO, **more)
        return place / "adapter"

    # ----------------------------------------------------------------------------------------------- rows

    def _rows(self, controls: ControlTuner, made: Prepared) -> Prepared:
        """Training and held-out rows with one answer and one label each, as this mode shows them."""
        train, labels = each_answer(made.train, controls), controls.labels
        write = self._written(controls, made) if self.mode == "text" else labelled(controls.by)

        def label(example: Example) -> str:
            return label_of(example.extras.get(controls.by))

        def shown(rows: Any) -> Any:
            wanted = labels[:1] if self.mode == "chosen" else labels
            return _of(rows, [(write(e, label(e)), o) for e, o in _told(rows) if label(e) in wanted])

        if (found := {label(e) for e in train.examples}) != set(labels):
            raise LuthierError(
                f"procedure.tuner.labels are {', '.join(labels)}, and the rows have {', '.join(sorted(found))} in '{controls.by}': "
                "name exactly those"
            )
        if self.balance:
            rows = _told(train)
            train = _of(train, [rows[i] for i in balanced([label(e) for e in train.examples])])
        held = None if made.held_out is None else shown(each_answer(made.held_out, controls))
        return replace(made, train=shown(train), held_out=held)

    def _written(self, controls: ControlTuner, made: Prepared) -> Under:
        """Rows with the text of a label in front."""
        tokenizer = made.loaded.tokenizer
        pairs = zip(controls.labels, self._texts(controls), strict=True)
        ids = {name: tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in pairs}
        return lambda e, name: behind_text(e, ids.get(name, []), tokenizer.bos_token_id)

    # --------------------------------------------------------------------------------------------- the end

    def _last(
        self, home: Path, told: RunRecipe, recipe: RunRecipe, controls: ControlTuner, say: Callable[[str], None],
        given: Mapping[str, Any], start: Path | None = None,
    ) -> RunResult:  # fmt: skip
        """The run that the folder is named after."""
        ready: list[_Heard] = []

        def change(made: Prepared) -> Prepared:
            held = None if made.held_out is None else each_answer(made.held_out, controls).examples
            under = self._written(controls, made) if self.mode == "text" else labelled(controls.by)
            own = replace(made if self.mode == "pairs" else self._rows(controls, made), told=recipe)
            more: dict[str, Any] = {"controls": controls, "home": home, "say": say, "asked": held, "under": under}
            if start is None:
                ready.append(_Heard(**vars(own), **more))
            else:
                tuner = Behind(own.tuner, from_folders({"default": start}), self.ratio > 0, self.ratio)  # type: ignore[arg-type]
                ready.append(_UnderControls(**{**vars(own), "tuner": tuner}, **more))
            ready[0].hear_untuned()
            return ready[0]

        done = run(told, change=change, also=ALSO, **given)
        if isinstance(ready[0], _UnderControls):
            ready[0].tuner.attached.remove()
        return done


Under = Callable[[Example, str], Example]
"""An example as it is shown under the control of a label."""


@dataclass
class _Heard(Prepared):
    """A run that tells in meet.json how much its model listens to the controls.

    asked  held-out rows of one answer and label each
    """

    controls: Any = None
    home: Path = Path()
    say: Callable[[str], None] = lambda text: None
    asked: list[Example] | None = None
    under: Under = lambda example, name: example
    before: dict[str, float] = field(default_factory=dict)

    def hear_untuned(self) -> None:
        found = self._listening(self.loaded.model, nullcontext)
        self.before = {} if found is None else {name: row[NONE] for name, row in found["nats"].items()}

    def without(self, model: Any) -> AbstractContextManager[Any]:
        """The model without a control, while it lasts."""
        return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()

    def _listening(self, model: Any, off: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any] | None:
        if not self.asked:
            return None
        start = getattr(model.config, "decoder_start_token_id", None) or 0
        collate = Collator(self.loaded.tokenizer.pad_token_id, start)
        size = self.recipe.train.per_device_eval_batch_size
        return listening(model, self.asked, self.controls.labels, self.controls.by, collate, self.under, off, size)

    def save(self, folder: Path, tuned: Any) -> dict[str, Any]:
        found = self._listening(tuned.model, partial(self.without, tuned.model))
        artefact = self.written(folder, tuned)
        told: dict[str, Any] = {} if found is None else {**found, "nats_untuned": self.before}
        runs.write_json(self.home / "meet.json", told)
        if found is not None:
            self._tell(found)
        return artefact

    def written(self, folder: Path, tuned: Any) -> dict[str, Any]:
        return Prepared.save(self, folder, tuned)

    def _tell(self, found: Mapping[str, Any]) -> None:
        self.say(
            f"meet: nats a token {found['nll']:.3f}; with the controls exchanged {found['swap_cost']:+.3f}; next tokens differ by "
            f"{found['reliance']:.3f} nats"
        )
        for name, row in found["nats"].items():
            said = ", ".join(f"{c} {v:.3f}" for c, v in row.items())
            self.say(f"meet: rows labelled {name} under each control: {said}; untuned {self.before[name]:.3f}")


@dataclass
class _UnderControls(_Heard, MeasuredBehind):
    """The second stage: saved with and without the controls."""

    def without(self, model: Any) -> AbstractContextManager[Any]:
        return self.tuner.attached.off()

    def written(self, folder: Path, tuned: Any) -> dict[str, Any]:
        attached = self.tuner.attached
        with attached.without():
            artefact = super().written(folder, tuned)
        with attached.as_peft() as wrapped:
            runs.write_folder(folder / "controls", partial(write_beside, wrapped, "default", folder / artefact["path"]))
        return artefact


# ---------------------------------------------------------------------------------------------------- rows


def each_answer(rows: Any, controls: ControlTuner) -> Any:
    """Prepared rows with one answer and one label each."""
    if not isinstance(rows.examples[0], GroupExample):
        return rows
    found = [
        (e, o)
        for g, o in zip(rows.examples, rows.origins, strict=True)
        for e in taken_apart(g, controls.labels, controls.by)
    ]
    return _of(rows, found)


def taken_apart(group: GroupExample, labels: Sequence[str], by: str) -> list[TextExample]:
    """A pair as its chosen answer under the first label and its rejected one under the second; one answer as it was judged."""
    out = []
    for k, (answer, given) in enumerate(zip(group.answers, group.given or [0] * len(group.answers), strict=True)):
        good = k == 0 if len(group.answers) > 1 else bool(group.scores and group.scores[0] > 0)
        own = label_of(group.extras.get(by))
        extras = {**group.extras, by: own if own in labels else labels[0 if good else 1]}
        before = len(group.prompt) + given
        counts = [t >= before for t in range(len(group.prompt) + len(answer))]
        out.append(TextExample(len(group.answers) * group.row + k, group.prompt + answer, counts, extras))
    return out


def balanced(labels: Sequence[str]) -> list[int]:
    """Places of all rows, and again of those of rarer labels, until every label has as many as the most frequent one."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(labels):
        places.setdefault(name, []).append(i)
    most = max(map(len, places.values()))
    return sorted(own[i % len(own)] for own in places.values() for i in range(most))


def _told(rows: Any) -> list[tuple[Example, str]]:
    """Examples with their origins."""
    return list(zip(rows.examples, rows.origins, strict=True))


def _of(rows: Any, found: Sequence[tuple[Example, str]]) -> Any:
    """Prepared rows with these examples and origins."""
    examples, origins = [e for e, _ in found], [o for _, o in found]
    report = replace(rows.report, examples=len(examples))
    return replace(rows, examples=examples, lengths=[len(e) for e in examples], origins=origins, report=report)


def labelled(by: str) -> Under:
    """An example that carries the label."""
    return lambda e, name: e if name == NONE else replace(e, extras={**e.extras, by: name})


def behind_text(example: Example, text: Sequence[int], bos: int | None) -> Example:
    """An example with `text` in front, behind its BOS. Raises LuthierError for rows that are no single text."""
    if not isinstance(example, TextExample):
        raise LuthierError(
            "procedure.mode text: rows of this type have no text to write in front: use prompts and completions"
        )
    at = 1 if bos is not None and example.ids[:1] == [bos] else 0
    ids = [*example.ids[:at], *text, *example.ids[at:]]
    return replace(example, ids=ids, counts=[*example.counts[:at], *[False] * len(text), *example.counts[at:]])


# ------------------------------------------------------------------------------------------------- listening


def listening(
    model: Any, examples: Sequence[Example], labels: Sequence[str], by: str, collate: Collator, under: Under | None = None,
    off: Callable[[], AbstractContextManager[Any]] = nullcontext, size: int = 16,
) -> dict[str, Any]:  # fmt: skip
    """What the model makes of the controls on held-out rows, as in meet.json. `off` takes the controls off while it lasts."""
    under, scorer = under or labelled(by), Scorer(model)
    nats: dict[str, dict[str, float]] = {}
    tokens: dict[str, int] = {}
    apart = 0.0
    with at_rest(model):
        for i, own in enumerate(labels):
            rows = [e for e in examples if label_of(e.extras.get(by)) == own]
            if not rows:
                continue
            nats[own], tokens[own], other = dict.fromkeys((*labels, NONE), 0.0), 0, labels[(i + 1) % len(labels)]
            for start in range(0, len(rows), size):
                said: dict[str, Tensor] = {}
                for name in nats[own]:
                    batch = collate([under(e, name) for e in rows[start : start + size]]).to(scorer.device)
                    target = batch.target
                    assert target is not None
                    with off() if name == NONE else nullcontext():
                        every = torch.arange(len(target), device=scorer.device)
                        said[name] = scorer.look(batch, every)[2].log_softmax(-1)  # (N, V)
                    nats[own][name] -= float(said[name].gather(1, target[:, None]).sum())
                tokens[own] += len(said[own])
                apart += float(kl(said[own], said[other]).sum())
    total = sum(tokens.values())
    exchanged = sum(nats[own][labels[(labels.index(own) + 1) % len(labels)]] for own in nats)
    own_nats = sum(nats[own][own] for own in nats)
    return {
        "nll": own_nats / total,
        "swap_cost": (exchanged - own_nats) / total,
        "reliance": apart / total,
        "nats": {own: {name: v / tokens[own] for name, v in row.items()} for own, row in nats.items()},
        "tokens": tokens,
    }
