"""What a method of each axis is: the contract between a method's file, the loop and the common checks.

A method is one frozen dataclass in one file; its fields are its options, its name is the file's name. The classes
here are what `luthier/<axis>/<name>.py` subclasses, directly or through a `_family.py` of the axis.

B rows, T tokens, N scored positions, A answers, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from luthier.core.batch import Batch, Example
    from luthier.core.logprobs import Scorer
    from luthier.core.loop import Loop
    from luthier.core.probe import Probe
    from luthier.core.trainable import Selection


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

        `task` is one of "causal_lm", "seq2seq_lm", "masked_lm", "classification". Task heads that are new stay
        trainable whatever the tuner.
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
    task       the head it needs: "causal_lm", "masked_lm", "classification"
    start      what the loss is before any step, in words and as a number where it is exact
    reference  True if it needs the log-probabilities of the untuned model
    """

    rows: ClassVar[tuple[str, ...]] = ()
    task: ClassVar[str] = "causal_lm"
    reference: ClassVar[bool] = False

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """The same objective with what it needs of the tokenizer (a mask id, say) filled in."""
        return self

    def for_examples(self, examples: Sequence[Example]) -> Self:
        """The same objective with what it needs to know of all training examples (how often a label occurs, say)."""
        return self

    def weight(self, batch: Batch) -> float:
        """The `Loss.weight` that `compute` will return, known without running the model."""
        raise NotImplementedError

    def view(self, batch: Batch, step: int, total: int, rng: np.random.Generator) -> Batch:
        """The batch as this objective shows it to the model at optimiser step `step` of `total` (corruption, mixing).

        `rng` depends on seed and step alone: fresh at every visit, the same after resuming and for every micro-batch.
        What is drawn for a row must depend on the row (`batch.rows`), so that no split of a step changes it.
        """
        return batch

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        """Run the model through `scorer` on `batch`. Families implement it; methods implement `loss` of their family."""
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

    exact  whether it takes the likeliest token, or draws from the model's own distribution
    """

    exact: ClassVar[bool] = True

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """The same decoder with what it needs of the tokenizer (the ids of words, say) filled in."""
        return self

    def allowed(self, said: Sequence[int], limits: Limits) -> list[int] | None:
        """Tokens that may follow what a row has said, stop tokens included; None: all. A function of `said` alone."""
        return None

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        """Prompts as ragged id lists to one generation each. Rows in a batch equal rows alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class Limits:
    """When to stop, and the random state. `stop_ids` end a row and are not part of its text."""

    max_new_tokens: int = 64
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    seed: int = 0


@dataclass
class Generation:
    """`ids` without the stop token; `stopped` tells whether it was reached; `logp` of `ids` (plus stop) summed."""

    ids: list[int]
    stopped: bool
    logp: float


# ----------------------------------------------------------------------------------------------------- edits


class Edit(Method):
    """Weights changed without gradient training: state dictionaries in, a new state dictionary out."""

    capabilities: ClassVar[frozenset[str]] = frozenset()

    def apply(self, states: Sequence[dict[str, Tensor]], model: nn.Module | None = None) -> dict[str, Tensor]:
        """New tensors of the names, shapes and dtypes of `states[0]`; inputs are left untouched.

        `model` has the architecture of the states, for edits that need to know its parts.
        """
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------ evaluation


class Evaluator(Method):
    """Scores items one by one, so that base and tuned can be paired on the same items.

    metrics  name -> True if higher is better; the first is the main one
    """

    metrics: ClassVar[dict[str, bool]] = {}


# --------------------------------------------------------------------------------------------------- recipes


class Recipe(Method):
    """Several runs in order: `procedure: NAME` in a recipe. No loss code and no loop of its own."""

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Overrides under which the method's own recipe file runs in a few seconds: what the common checks run."""
        return {}

    def run(self, folder: str, *, recipe: Any, say: Callable[[str], None], **given: Any) -> Any:
        """The whole procedure for the recipe that names it, into `folder`; a `RunResult`, as a single run returns.

        `given` is what `luthier.run` was called with (resume, callbacks, quiet, bases), to be handed on to the runs
        inside. A run inside must be given a recipe whose `procedure` is None.
        """
        raise NotImplementedError


# -------------------------------------------------------------------------------------------------- analysis


class Analysis(Method):
    """What a run's model and data tell, as a table: `analysis: NAME` in a recipe.

    every  steps between two looks, besides those before the first step and after the last; 0: none
    """

    every: int = 0

    def table(self, loop: Loop) -> dict[str, Any]:
        """Plain values by name. Leaves weights, gradients, modes and random state as they were."""
        raise NotImplementedError
