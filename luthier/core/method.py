"""What a method of each axis is: the contract between a method's file, the loop and the common checks.

A method is one frozen dataclass in one file; its fields are its options, its name is the file's name. The classes
here are what `luthier/<axis>/<name>.py` subclasses, directly or through a `_family.py` of the axis.

B rows, T tokens, N scored positions, A answers, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from luthier.core.batch import Batch, Example, GroupExample
    from luthier.core.layout import Layout
    from luthier.core.logprobs import Scorer
    from luthier.core.loop import Loop
    from luthier.core.mixture import Other
    from luthier.core.probe import Probe
    from luthier.core.shards import Shards
    from luthier.core.trainable import Selection


HEADED = ("classification", "token_classification")
"""Tasks whose head is new, and has as many outputs as there are labels: of a whole input, and of single tokens."""


class LuthierError(Exception):
    """An error a user can act on: one line that names the file, key or row, and the fix. No traceback is shown."""


class Refusal(LuthierError):
    """A method was asked for something that it cannot do (a capability that it does not claim)."""


class Method:
    """Base of every part.

    paper           source, as "arXiv:2305.18290" or a full reference
    cards           numbers of the method cards that the part belongs to
    known_failures  check name -> reason; strict: a listed check that passes fails the build
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "arbitrary_types_allowed": True}
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = ()
    known_failures: ClassVar[dict[str, str]] = {}

    @classmethod
    def example(cls) -> Self:
        """An instance small enough for the common checks on a tiny model."""
        return cls()

    @property
    def name(self) -> str:
        return type(self).__module__.rsplit(".", 1)[-1]


# --------------------------------------------------------------------------------------------------- tuners


class Tuner(Method):
    """Which numbers move.

    capabilities  from TUNER_CAPABILITIES; what is not listed must raise `Refusal` when asked for
    kinds         model kinds: "decoder", "encoder", "encoder-decoder"
    artefact      "adapter" (a peft folder) or "model" (an ordinary checkpoint)
    learning_rate what a recipe that names none gets
    """

    capabilities: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset({"decoder", "encoder", "encoder-decoder"})
    artefact: ClassVar[str] = "model"
    learning_rate: ClassVar[float] = 2e-5

    def wrap(self, model: nn.Module, task: str, seed: int = 0) -> nn.Module:
        """Make `model` trainable in this method's way and return the module to train.

        `task` is one of "causal_lm", "seq2seq_lm", "masked_lm", "classification", "token_classification", "embedding". Task heads
        that are new stay trainable whatever the tuner.
        """
        raise NotImplementedError

    def parameter_count(self, model: nn.Module) -> int:
        """Trainable scalars that `wrap` gives on `model` (unwrapped), by the closed formula of the paper; no head."""
        raise NotImplementedError

    def for_data(self, tokenizer: Any, label_names: Sequence[str] | None = None) -> Self:
        """The same tuner with what it needs of the tokenizer and the names of the classes filled in."""
        return self

    def groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        """Parameter groups [{"params": [names], "lr_scale": float, "weight_decay": float}] or None for one group."""
        return None

    @property
    def chooses(self) -> bool:
        """Whether the run's own data decide what moves: the loop calls `choose` before the first step and where `due`."""
        return False

    def choose(self, model: nn.Module, probe: Probe) -> Selection:
        """What moves from here on, of the wrapped `model`. `probe` has batches, rows, gradients, optimiser and costs."""
        raise NotImplementedError

    def before_step(self, model: nn.Module, rng: random.Random) -> None:
        """Called before every optimiser step on the wrapped model: for what a method draws anew.

        `rng` depends on seed, stage and step alone: all micro-batches and processes of a step see one draw, and a resumed
        run the same.
        """

    def penalty(self, model: nn.Module) -> Tensor | None:
        """What is added to the mean loss of every step, once, whatever its micro-batches and processes; None: nothing."""
        return None

    def after_step(self, model: nn.Module, step: int, total: int) -> None:
        """Called behind the optimiser step `step` (1 .. total) on the wrapped model, whose gradients are still there."""

    def due(self, epoch: int) -> bool:
        """Whether what moves is drawn or chosen again as epoch `epoch` > 0 begins."""
        return getattr(self, "reselect", "never") == "epoch"

    def missing(self, model: nn.Module) -> str:
        """What this model would have to have, in words; empty where it fits. `wrap` refuses the others."""
        return ""


TUNER_CAPABILITIES: dict[str, str] = {
    "identity": "starts as the base model exactly",
    "merge": "can be merged into the base and unmerged again",
    "fold": "what it computes from its own tensors can be folded into plain vectors for serving",
    "off": "can be switched off, which gives the base back exactly",
    "several": "several named adapters live on one base",
    "generate": "cached decoding equals uncached decoding",
    "reselect": "the trainable set can be drawn again during a run",
}


class PartialTuner(Tuner):
    """Trains some of the model's own tensors. A method says which; freezing and optimiser hygiene are the core's.

    reselect  "stage" (once per run), "epoch" or "never" as a field where the method draws at random
    """

    artefact: ClassVar[str] = "model"

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        """What moves. `rng` is seeded by the run's seed and, when re-drawn, by stage and epoch."""
        raise NotImplementedError

    def wrap(self, model: nn.Module, task: str, seed: int = 0) -> nn.Module:
        if missing := self.missing(model):
            raise Refusal(f"{self.name} cannot tune this {type(model).__name__}: it has no {missing}")
        selection = self.select(model, random.Random(seed))
        selection.add_heads(model)
        selection.apply(model)
        return model

    def parameter_count(self, model: nn.Module) -> int:
        return self.select(model, random.Random(0)).count(model, heads=False)


# ------------------------------------------------------------------------------------------------ objectives


@dataclass
class Loss:
    """A sum and the weight to divide it by; only the loop divides, after adding over micro-batches and processes.

    sum      scalar tensor with gradient
    weight   what one unit of `sum` is counted in: tokens, pairs or rows
    figures  name -> (sum, weight) to log, divided in the same way
    """

    sum: Tensor
    weight: float
    figures: dict[str, tuple[Tensor, float]] = field(default_factory=dict)


class Objective(Method):
    """What is minimised.

    rows       data types it takes (names of the data axis), the first is the usual one
    task       the head it needs: "causal_lm", "masked_lm", one of `HEADED`, "embedding" (none: the final states)
    start      what the loss is before any step, in words and as a number where it is exact
    reference  what it needs of the untuned model: "" nothing; "answers" the log-probability of each answer, computed once
               and stored; "model" the model itself, asked beside the tuned one (`Scorer.compare`); "top" its `k` likeliest
               tokens at each scored position, computed once and stored
    teacher    the model that this is asked of in place of the untuned one, as a recipe names it; None: the untuned one
    k          how many tokens "top" means
    idle       True if a scored token may have no gradient (a hinge that is kept, a side that is only a yardstick)
    group      rows whose loss depends on one another: they are drawn together and never split, so that sums still add.
               Each `group` rows of a batch, in order, are one; only the last may be smaller
    row_options  options of the data type that it cannot do without
    """

    rows: ClassVar[tuple[str, ...]] = ()
    task: ClassVar[str] = "causal_lm"
    reference: ClassVar[str] = ""
    teacher: Any = None
    k: int = 0
    idle: ClassVar[bool] = False
    group: int = 1
    row_options: ClassVar[dict[str, Any]] = {}

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """The same objective with what it needs of the tokenizer (a mask id, say) filled in."""
        return self

    def for_examples(self, examples: Sequence[Example]) -> Self:
        """The same objective with what it needs to know of all training examples (how often a label occurs, say)."""
        return self

    def companions(self, examples: Sequence[Example]) -> Sequence[Example] | None:
        """One further example for each, from which `statistic` is taken (a mismatched answer, say); None: not needed."""
        return None

    def statistic(self, scorer: Scorer, batch: Batch) -> tuple[Tensor, float]:
        """(sum (k,), weight) over a batch of companions, without gradient.

        The loop adds both over all micro-batches and processes of a step before its loss is computed, and hands the
        mean on as `batch.shared`: what couples the rows of a step then does not depend on how the step is split.
        """
        raise NotImplementedError

    def weight(self, batch: Batch) -> float:
        """The `Loss.weight` that `compute` will return, known without running the model."""
        raise NotImplementedError

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        """The batch as this objective shows it to the model at optimiser step `step` of `total` (corruption, mixing).

        `rng` depends on seed and step alone: fresh at every visit, the same after resuming and for every micro-batch.
        What is drawn for a row must depend on the row (`batch.rows`), so that no split of a step changes it. Held-out rows
        come as step -1: corruption that only training is for leaves them alone.
        """
        return batch

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        """Run the model through `scorer` on `batch`. Families implement it; methods implement `loss` of their family."""
        raise NotImplementedError


class OnlineObjective(Objective):
    """An objective of answers that the tuned model itself writes, in rounds (`core/rollouts.py`).

    A row is a prompt. Its answered example has `scores`, the rewards, and in `extras` numbers (N,) of its scored tokens or
    (A,) of its answers: `old`, and with `reference = "model"` also `ref`, are log-probabilities (N,) of the model that wrote
    them and of the untuned one.
    """

    online: ClassVar[bool] = True

    def head(self, model: nn.Module) -> nn.Module | None:
        """What is trained beside the wrapped model and thrown away afterwards; `scorer.plain.own_head` during the run."""
        return None

    def recall(self, scorer: Scorer, batch: Batch) -> dict[str, Tensor]:
        """Numbers (N,) to keep of the model that wrote the answers, `old` among them."""
        return {"old": scorer.token_logp(batch)}

    def credit(self, answered: Sequence[GroupExample], memory: dict[str, float]) -> list[GroupExample]:
        """The examples of a round with what its answers were worth, in new `extras`.

        `memory` goes on from round to round, and with checkpoints; what is in it is logged.
        """
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------------ data


class DataSource(Method):
    """Rows of one type to examples.

    columns   required columns, any one of the alternatives of each entry: (("prompt",), ("completion",))
    example_kind  the class of `core.batch` that it makes
    """

    columns: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def encode(self, row: dict[str, Any], index: int, tokenizer: Any) -> Example:
        """One row. Raises RowError with the reason when the row cannot be used."""
        raise NotImplementedError


class RowError(LuthierError):
    """One row cannot be used; the reader adds file and line."""


# -------------------------------------------------------------------------------------------------- decoding


class Decoder(Method):
    """How tokens are chosen.

    exact     whether it takes the likeliest token, or draws from the model's own distribution
    rewrites  whether the model reads other tokens than the prompt's: log-probabilities of given texts are then refused
    """

    exact: ClassVar[bool] = True
    rewrites: ClassVar[bool] = False

    @property
    def layout(self) -> Layout | None:
        """A constant prompt that goes around whatever is asked, with what ends and cleans its answers; None: there is none."""
        return None

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """The same decoder with what it needs of the tokenizer (the ids of words, say) filled in."""
        return self

    def for_models(self, load: Callable[[Any], Other], tokenizer: Any = None) -> Self:
        """The same decoder with the other models that its options name loaded by `load`; `tokenizer` is the asked one's."""
        return self

    def over(self, model: nn.Module) -> nn.Module:
        """The model whose distribution is decoded and scored: `model` itself, or a sum of it and others."""
        return model

    def alone(self) -> Decoder:
        """The same choice of tokens without other models and rules: what a decoder that has some is compared with."""
        return self

    def allowed(self, said: Sequence[int], limits: Limits) -> list[int] | None:
        """Tokens that may follow what a row has said, stop tokens included; None: all. A function of `said` alone."""
        return None

    def shaped(self, scores: Tensor, prompt: Sequence[int], said: Sequence[int], limits: Limits) -> Tensor:
        """The scores (V,) that the next token is chosen by, from the model's own: rules of the decoder are in them."""
        return scores

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        """Prompts as ragged id lists to one generation each. Rows in a batch equal rows alone."""
        raise NotImplementedError

    def candidates(
        self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits, k: int
    ) -> list[list[Generation]]:
        """Up to `k` different generations a prompt, that of `generate` first: here k draws, of which repeats are left out.

        A decoder that ranks several answers gives its best k.
        """
        found = self.generate(model, [row for row in ids for _ in range(k)], limits)
        out = []
        for start in range(0, len(found), k):
            different: dict[tuple[int, ...], Generation] = {}
            for one in found[start : start + k]:
                different.setdefault(tuple(one.ids), one)
            out.append(list(different.values()))
        return out


@dataclass(frozen=True)
class Limits:
    """When to stop, and the random state. `stop_ids` end a row and are not part of its text."""

    max_new_tokens: int = 64
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    seed: int = 0


@dataclass
class Generation:
    """`ids` without the stop token; `stopped` tells whether it was reached; `logp` of `ids` (plus stop) summed.

    figures  counts that the decoder kept of this row (drafts made, drafts accepted, ...)
    """

    ids: list[int]
    stopped: bool
    logp: float
    figures: dict[str, int] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------- edits


class Edit(Method):
    """Weights changed without a training loop: checkpoints in, one of the names, shapes and dtypes of the first out.

    Tensors are made one at a time, each from its namesakes in all checkpoints, so that weights larger than memory can be
    edited. What must be known before the first of them (a draw, a threshold, what data say) is the plan.

    inputs        least and most checkpoints (None: any number); the first is the one that is changed
    elementwise   whether a number of the result depends on its namesakes and on what `local` found alone: tensors are then
                  made from flat pieces of them, in order, and of every size in little memory
    capabilities  from EDIT_CAPABILITIES
    """

    capabilities: ClassVar[frozenset[str]] = frozenset()
    elementwise: ClassVar[bool] = False
    inputs: ClassVar[tuple[int, int | None]] = (1, None)

    @property
    def needs(self) -> frozenset[str]:
        """What `plan` must be given: "architecture" (`model`, with or without weights), "data" (`probe` of the first)."""
        return frozenset()

    def plan(
        self, states: Sequence[Mapping[str, Tensor]], model: nn.Module | None = None, probe: Probe | None = None
    ) -> Any:
        """What has to be known before the first tensor. Reading a tensor of `states` may be reading a file."""
        return None

    def local(self, name: str, read: Callable[[], Iterable[Sequence[Tensor]]], plan: Any) -> Any:
        """What has to be known of the tensor `name` before its first piece. `read()` gives its pieces from the first one."""
        return plan

    def tensor(self, name: str, tensors: Sequence[Tensor], plan: Any) -> Tensor:
        """The tensor `name` of the result, in any dtype; `tensors` are left as they are. Floating point tensors only.

        `plan` is what `local` gave. Of an elementwise edit, this is asked piece after piece.
        """
        raise NotImplementedError

    def found(self, plan: Any) -> dict[str, Any]:
        """What is worth writing down of a plan, as plain values."""
        return {}

    def one(self, name: str, tensors: Sequence[Tensor], plan: Any) -> Tensor:
        """`tensor` in the first one's dtype; what is no floating point number is the first one's. Raises LuthierError for NaN."""
        (out,) = self._pieces(name, lambda: [tensors], plan)
        return out

    def _pieces(self, name: str, read: Callable[[], Iterable[Sequence[Tensor]]], plan: Any) -> Iterator[Tensor]:
        local = None
        for i, tensors in enumerate(read()):
            first = tensors[0]
            if not first.is_floating_point():
                yield first
                continue
            if i == 0:
                local = self.local(name, read, plan)
            out = self.tensor(name, tensors, local).to(first.dtype)
            for tensor in (*tensors, out):
                if not _finite(tensor):
                    what = "would hold" if tensor is out else "holds"
                    raise LuthierError(
                        f"'{name}' {what} NaN or infinity, so nothing was written: look at the checkpoints"
                    )
            yield out

    def stream(self, states: Sequence[Shards], plan: Any) -> Iterator[tuple[str, Tensor]]:
        """The result tensor by tensor, or in flat pieces of them, in the order of the first checkpoint's files."""
        for name in states[0]:
            for piece in self._pieces(name, partial(self._read, states, name), plan):
                yield name, piece

    def _read(self, states: Sequence[Shards], name: str) -> Iterable[Sequence[Tensor]]:
        from luthier.core.shards import pieces  # whose errors are this file's

        return pieces(states, name) if self.elementwise else [[s[name] for s in states]]

    def apply(
        self, states: Sequence[Mapping[str, Tensor]], model: nn.Module | None = None, probe: Probe | None = None
    ) -> dict[str, Tensor]:
        """All tensors at once, in memory of their own."""
        self.check(len(states))
        plan = self.plan(states, model, probe)
        out = {name: self.one(name, [s[name] for s in states], plan) for name in states[0]}
        theirs = {t.untyped_storage().data_ptr() for s in states for t in s.values()}
        return {n: t.clone() if t.untyped_storage().data_ptr() in theirs else t.contiguous() for n, t in out.items()}

    def check(self, checkpoints: int) -> None:
        """Raises LuthierError where this many checkpoints are not what the edit takes."""
        least, most = self.inputs
        if checkpoints < least or (most is not None and checkpoints > most):
            words = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
            raise LuthierError(f"{self.name} takes {words} checkpoint{'s' * (words != '1')}, not {checkpoints}")


EDIT_CAPABILITIES: dict[str, str] = {
    "agree": "where all checkpoints are equal, they come back",
    "copies": "every number is one of the checkpoints' own",
    "zeros": "every number is that of the first checkpoint, or zero",
    "adapter": "takes an adapter as it is, and gives an adapter back",
}


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite: the least and the largest tell, as NaN is both."""
    if not tensor.numel():
        return True
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    return all(bool(end.isfinite()) for end in tensor.aminmax())


# ------------------------------------------------------------------------------------------------ evaluation


class Evaluator(Method):
    """Scores items one by one, so that base and tuned can be paired on the same items.

    metrics  name -> True if higher is better; the first is the main one
    """

    metrics: ClassVar[dict[str, bool]] = {}


# --------------------------------------------------------------------------------------------------- recipes


class Recipe(Method):
    """Several runs in order: `procedure: NAME` in a recipe. No loss code and no loop of its own.

    compares  True if it ends in a comparison of many runs (compare.json) and not in one tuned model (run.json)
    """

    compares: ClassVar[bool] = False

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Overrides under which the method's own recipe file runs in a few seconds: what the common checks run."""
        return {}

    def run(self, folder: str, *, recipe: Any, say: Callable[[str], None], **given: Any) -> Any:
        """The whole procedure for the recipe that names it, into `folder`; what it returns has `folder` and `report`.

        A procedure that ends in one tuned model returns a `RunResult`, as a single run does; one that compares returns
        the `Comparison` of `luthier.compare`, and its folder holds compare.json in place of run.json.
        `given` is what `luthier.run` was called with (resume, callbacks, quiet, bases), to be handed on to the runs
        inside. A run inside must be given a recipe whose `procedure` is None.
        """
        raise NotImplementedError


# -------------------------------------------------------------------------------------------------- analysis


class Analysis(Method):
    """What a run's model and data tell, as a table: `analysis: NAME` in a recipe.

    every    steps between two looks, besides those before the first step and after the last; 0: none
    tasks    heads of the models that it can look at; it refuses others. Empty: any
    untuned  whether it compares with the untuned model, which is then kept (`loop.bare.untuned()`)
    """

    every: int = 0
    tasks: ClassVar[frozenset[str]] = frozenset()
    untuned: ClassVar[bool] = False

    def for_data(self, tokenizer: Any, read: Callable[[Any], Sequence[dict[str, Any]]]) -> Self:
        """The same analysis with what it needs of the tokenizer and of rows that its options name; `read` reads a source."""
        return self

    def look(self, loop: Loop) -> dict[str, Any]:
        """The table of a run's moment. Raises LuthierError for a model that the analysis does not look at."""
        if self.tasks and loop.objective.task not in self.tasks:
            raise LuthierError(
                f"{self.name}: a {loop.objective.task} model is not what it looks at: use a {' or '.join(sorted(self.tasks))} model"
            )
        return self.table(loop)

    def table(self, loop: Loop) -> dict[str, Any]:
        """Plain values by name. Leaves weights, gradients, modes and random state as they were.

        A report shows its numbers, curves over the "position" of lists of rows that have one, and the texts of "coloured":
        {"prompt", "tokens": [{"text", "kind", numbers by name}]}, where a kind is "unshifted", "marginal" or "shifted".
        """
        raise NotImplementedError
