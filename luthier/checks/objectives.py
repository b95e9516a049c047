"""What every objective keeps, for each kind of rows (or labels) that it takes.

The heart is `equation`: a plain float64 loop over single unpadded examples, written from the header's equation in
`oracles/objectives_<name>.py` by someone who does not call the method. Values and gradients must be equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from luthier.checks._battery import Check, on, oracle_module, when
from luthier.checks._compare import close, finite, require, same
from luthier.checks._models import (
    CLASSES,
    PAD,
    answered,
    groups,
    labelled,
    model_of,
    searches,
    sources_targets,
    tagged,
    texts,
    wordings,
)
from luthier.core import catalog
from luthier.core.anatomy import anatomy
from luthier.core.batch import (
    Batch,
    GroupExample,
    LabelledExample,
    SearchExample,
    SourceTargetExample,
    TaggedExample,
    TextExample,
    collate_groups,
    collate_labelled,
    collate_packed,
    collate_searches,
    collate_source_target,
    collate_tagged,
    collate_text,
)
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop, attach
from luthier.core.method import HEADED, Loss, Objective, OnlineObjective, PartialTuner
from luthier.core.references import References
from luthier.core.teacher import Top
from luthier.core.trainable import Selection


@dataclass(frozen=True)
class _Everything(PartialTuner):
    """All parameters move: the checks' own tuner."""

    paper: ClassVar[str] = ""

    def select(self, model: nn.Module, rng: Any) -> Selection:
        return Selection(whole={n for n, _ in model.named_parameters()})


class Plain:
    """A model asked one unpadded sequence at a time, without anything of the core: what oracles see."""

    def __init__(self, model: Any):
        self.model = model

    def logp(self, ids: Sequence[int]) -> Tensor:
        """(T, V): row t is the log-distribution that the model states at token t."""
        return self.model(input_ids=torch.tensor([list(ids)])).logits[0].log_softmax(-1)

    def decoder_logp(self, ids: Sequence[int], read: Sequence[int]) -> Tensor:
        """(U, V) of an encoder-decoder model that read `ids`, at each token of `read`."""
        inputs = {"input_ids": torch.tensor([list(ids)]), "decoder_input_ids": torch.tensor([list(read)])}
        return self.model(**inputs).logits[0].log_softmax(-1)

    def head(self, ids: Sequence[int]) -> Tensor:
        """(C,) outputs of a task head."""
        return self.model(input_ids=torch.tensor([list(ids)])).logits[0]

    def tags(self, ids: Sequence[int]) -> Tensor:
        """(T, C) outputs of a head of single tokens."""
        return self.model(input_ids=torch.tensor([list(ids)])).logits[0]

    def states(self, ids: Sequence[int]) -> Tensor:
        """(T, D) final states of a model without a head."""
        return self.model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0]

    @property
    def start(self) -> int:
        return self.model.config.decoder_start_token_id

    def answer_logp(self, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """log pi(answer | prompt), summed."""
        logp = self.logp([*prompt, *answer])
        return sum(logp[len(prompt) - 1 + t, token] for t, token in enumerate(answer))  # type: ignore[return-value]


@dataclass(frozen=True)
class World:
    """One architecture, one kind of examples."""

    label: str
    architecture: str
    examples: tuple[Any, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> type:
        return type(self.examples[0])

    def model(self, reference: bool = False) -> Any:
        """The policy, or another model of the same shape as reference."""
        model = model_of(self.architecture, **dict(self.settings))
        if reference:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(7)
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return model

    @cached_property
    def references(self) -> list[Tensor]:
        """Log-probability of each answer of each example under the reference model."""
        return self.stated(Plain(self.model(reference=True)), self.examples)

    @staticmethod
    @torch.no_grad()
    def stated(plain: Plain, examples: Sequence[Any]) -> list[Tensor]:
        """Log-probability of each answer of each example."""
        return [torch.stack([plain.answer_logp(e.prompt, a) for a in e.answers]) for e in examples]

    @staticmethod
    @torch.no_grad()
    def likeliest(plain: Plain, examples: Sequence[Any], k: int) -> list[Top]:
        """The k likeliest tokens at the scored positions of each example, and their log-probabilities."""
        out = []
        for e in examples:
            if isinstance(e, SourceTargetExample):
                found = plain.decoder_logp(e.ids, [plain.start, *e.target[:-1]])
            else:
                found = plain.logp(e.ids)[[t - 1 for t in range(1, len(e.ids)) if e.counts[t]]]
            out.append((found.topk(k).indices, found.topk(k).values))
        return out

    def untuned(self, objective: Objective, model: nn.Module | None = None) -> References | None:
        """What a loop is given of the reference model; `model` where that is to be the tuned one's own base."""
        if objective.reference == "model":
            return References(model=model)
        if objective.reference == "top":
            return References(top=self.likeliest(Plain(self.model(reference=True)), self.examples, objective.k))
        if not objective.reference:
            return None
        companions = objective.companions(self.examples)
        plain = Plain(self.model(reference=True))
        return References(self.references, None if companions is None else self.stated(plain, companions))

    def batch(self, objective: Objective, rows: Sequence[int] | None = None, layout: str = "right") -> Batch:
        """Examples by index in one of the layouts "right", "left", "packed", "tree"; as the objective shows them."""
        rows = list(range(len(self.examples))) if rows is None else list(rows)
        batch = self._collate([self.examples[i] for i in rows], layout)
        companions = objective.companions(self.examples)
        if companions is not None:  # the step is always all of the world, whatever rows of it are looked at
            batch.extras["companions"] = self._collate(list(companions), layout)
        batch = objective.view(batch, 0, 10, np.random.default_rng([0, 0, 0]))
        logp = torch.cat([self.references[i] for i in rows]) if objective.reference == "answers" else None
        return self.refer(objective, batch, self.model(reference=True), logp)

    def refer(self, objective: Objective, batch: Batch, reference: Any, logp: Tensor | None = None) -> Batch:
        """The batch with what `objective` needs of a reference model; `logp` where that is known."""
        if objective.reference == "model":
            batch.extras["untuned"] = reference
        elif objective.reference == "top":
            at = {e.row: e for e in self.examples}
            told = self.likeliest(Plain(reference), [at[r] for r in batch.rows.tolist()], objective.k)
            batch.top_ids, batch.top_logp = (torch.cat(part) for part in zip(*told))
        elif objective.reference:
            at = {e.row: e for e in self.examples}
            plain, rows = Plain(reference), list(dict.fromkeys(batch.rows.tolist()))
            batch.reference = torch.cat(self.stated(plain, [at[r] for r in rows])) if logp is None else logp
            companions = objective.companions(self.examples)
            if companions is not None:
                batch.extras["companions"].reference = torch.cat(self.stated(plain, companions))
        return batch

    def _collate(self, examples: list[Any], layout: str) -> Batch:
        side = "left" if layout == "left" else "right"
        if self.kind is GroupExample:
            return collate_groups(examples, PAD, side, share_prompt=layout == "tree")
        if self.kind is LabelledExample:
            return collate_labelled(examples, PAD, side)
        if self.kind is TaggedExample:
            return collate_tagged(examples, PAD, side)
        if self.kind is SearchExample:
            return collate_searches(examples, PAD, side)
        if self.kind is SourceTargetExample:
            return collate_source_target(examples, PAD, PAD, side)
        if layout == "packed":
            return collate_packed([examples[i : i + 2] for i in range(0, len(examples), 2)], PAD)
        return collate_text(examples, PAD, side)


def worlds(method: Objective) -> list[World]:
    kinds = {_kind_of_rows(row) for row in method.rows}
    if (SearchExample, 0) in kinds:
        return _searched(method.task)
    if isinstance(method, OnlineObjective):  # what it makes of answers that were written and judged
        return [World("answered prompts", "llama", tuple(method.credit(answered(), {})))]
    if method.task == "classification" and (GroupExample, 2) in kinds:
        one = (("num_labels", 1),)
        sizes = sorted(answers for kind, answers in kinds if kind is GroupExample)
        return [World(f"groups of {k} for one score", "llama-classifier", groups(6, k), one) for k in sizes]
    if method.task == "classification":
        return [_headed(problem) for problem in method.problems]  # type: ignore[attr-defined]
    if method.task == "token_classification":
        return [World("encoder", "bert-tagger", tagged()), World("decoder", "llama-tagger", tagged())]
    found = []
    if (TextExample, 0) in kinds and method.task == "masked_lm":
        found.append(World("encoder", "bert", texts()))
    elif (TextExample, 0) in kinds and method.task == "embedding":
        found += [World("encoder", "bert-embedding", texts()), World("decoder", "llama-embedding", texts())]
    elif (TextExample, 0) in kinds:
        found.append(World("decoder", "llama", texts()))
        found.append(World("decoder that scales its logits", "granite", texts()))
    for kind, answers in sorted(kinds, key=str):
        if kind is GroupExample and answers < 0:
            found.append(World(f"{-answers} wordings", "llama", wordings(6, -answers)))
        elif kind is GroupExample:
            label = f"groups of {answers}" if answers <= 2 else f"groups of 1 to {answers}"
            found.append(World(label, "llama", groups(6, answers)))
        if kind is SourceTargetExample:
            found.append(World("encoder-decoder", "t5", sources_targets()))
    return found


def _headed(problem: str) -> World:
    """The classes of transformers take the number of outputs from the configuration."""
    settings = (("num_labels", 1 if problem == "regression" else CLASSES),)
    return World(problem, "bert-classifier", labelled(problem), settings)


def _searched(task: str) -> list[World]:
    """Query and document apart for models without a head, in one sequence for a head with one output."""
    if task == "classification":
        return [World("pairs for one score", "bert-classifier", searches(paired=True), (("num_labels", 1),))]
    return [World("encoder", "bert-embedding", searches()), World("decoder", "llama-embedding", searches())]


def _kind_of_rows(name: str) -> tuple[type, int]:
    """What a row type makes: the class of its examples, and the number of answers in a group, negative where beginnings
    of answers are given."""
    from luthier.checks.data import sample, vocabulary

    source = catalog.load("data", name).example()
    if source.example_kind is not GroupExample:
        return source.example_kind, 0
    example = source.encode(sample(source), 0, vocabulary())
    return GroupExample, len(example.answers) * (1 if example.given is None else -1)


def kinds(*wanted: type) -> Callable[[Check], Check]:
    return on(lambda world: world.kind in wanted)


token_level = when(lambda method: method.task not in ("classification", "embedding"))
vocabulary_level = when(lambda method: method.task not in (*HEADED, "embedding"))
causal = when(lambda method: method.task == "causal_lm")


def computed(objective: Objective, model: nn.Module, batch: Batch, chunk: int | None = None) -> Loss:
    if isinstance(objective, OnlineObjective) and (head := attach(objective, model)) is not None:
        with torch.no_grad():  # it starts with saying nothing
            for k, parameter in enumerate(head.parameters()):
                parameter.copy_(torch.linspace(-0.4, 0.5 + k, parameter.numel()).view_as(parameter))
    beside = batch.extras.get("untuned")
    if beside is not None and next(beside.parameters()).dtype != (dtype := next(model.parameters()).dtype):
        beside = copy.deepcopy(beside).to(dtype)
    scorer = Scorer(model, chunk=chunk, beside=beside)
    if (companions := batch.extras.get("companions")) is not None:
        with torch.no_grad():
            value, weight = objective.statistic(scorer, companions)
        batch = replace(batch, shared=value / weight)
    return objective.compute(scorer, batch)


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names = [n for n, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def units(method: Objective, n: int) -> list[list[int]]:
    """Rows that may be taken apart: one by one, or in the objective's groups."""
    return [list(range(i, min(i + method.group, n))) for i in range(0, n, method.group)]


def last_module(model: Any) -> nn.Module:
    """What every output goes through: the head, or the last norm of a model without one."""
    heads = (model.get_output_embeddings(), getattr(model, "classifier", None), getattr(model, "score", None))
    if any(head is not None for head in heads):
        return next(head for head in heads if head is not None)
    body = anatomy(model)
    return model.get_submodule([*body.layers[-1].norms, *body.final_norms][-1])


def agree(a: Loss, b: Loss, what: str) -> None:
    close(a.sum.detach(), b.sum.detach(), f"loss {what}")
    require(a.weight == b.weight, f"weight {what}: {a.weight} and {b.weight}")


# ------------------------------------------------------------------------------------- the equation itself


EXACT = {"llama": "gpt2"}
"""Where norms are computed in float32 whatever the model's precision: a model of the same kind in which they are not."""


def check_equation(method: Objective, world: World) -> None:
    """Sum, weight and gradients are those of a float64 loop from the equation."""
    world = replace(world, architecture=EXACT.get(world.architecture, world.architecture))
    oracle = oracle_module("objectives", method.name)
    require(
        oracle is not None and hasattr(oracle, "equation"), f"no oracles/objectives_{method.name}.py with `equation`"
    )
    model, other = world.model().double(), world.model(reference=True).double()
    reference, batch = Plain(other), world.refer(method, world.batch(method), other)
    loss = computed(method, model, batch)
    total, weight = oracle.equation(method, world.examples, Plain(model), reference, batch)  # type: ignore[union-attr]
    require(loss.sum.dtype == torch.float64, f"the loss of a float64 model is {loss.sum.dtype}")
    close(loss.sum.detach(), total.detach(), "loss and equation")
    require(loss.weight == weight, f"weight {loss.weight}, by the equation {weight}")
    mine, wanted = gradients(loss.sum, model), gradients(total, model)
    for name, gradient in wanted.items():
        close(mine[name], gradient, f"gradient of {name} and that of the equation")


def check_start(method: Objective, world: World) -> None:
    """The value that the header states for a model that knows nothing and is its own reference."""
    oracle = oracle_module("objectives", method.name)
    require(oracle is not None and hasattr(oracle, "start"), f"no oracles/objectives_{method.name}.py with `start`")
    model = world.model()
    attach(method, model)
    with torch.no_grad():
        for parameter in last_module(model).parameters():
            parameter.zero_()
        if hasattr(model, "cls"):
            model.cls.predictions.bias.zero_()  # type: ignore[union-attr]
    batch = world.refer(method, world.batch(method), model)
    loss = computed(method, model, batch)
    outputs = model.config.num_labels if method.task in HEADED else model.config.vocab_size
    stated = oracle.start(world.examples, outputs)  # type: ignore[union-attr]
    close(loss.sum.detach() / loss.weight, torch.tensor(stated), "loss at the start and as stated")


# ------------------------------------------------------------------------------------ sums and weights


def check_weight(method: Objective, world: World) -> None:
    """The weight announced is the weight returned; figures are detached (sum, weight) pairs."""
    for rows in ([0], [1, 3], [4, 0, 2]):
        batch = world.batch(method, rows)
        loss = computed(method, world.model(), batch)
        require(loss.weight == method.weight(batch), f"announced {method.weight(batch)}, returned {loss.weight}")
        require(
            loss.weight > 0 and loss.sum.ndim == 0 and loss.sum.requires_grad, "a scalar sum with gradient is needed"
        )
        for name, (value, _) in loss.figures.items():
            require(not value.requires_grad, f"figure {name} keeps the graph alive")


def check_sums_add(method: Objective, world: World) -> None:
    """Sums and weights of rows alone (of whole groups) add up to those of the batch, gradients too; order is no matter."""
    model, alone = world.model(), units(method, len(world.examples))
    whole = computed(method, model, world.batch(method))
    parts = [computed(method, model, world.batch(method, rows)) for rows in alone]
    total = torch.stack([p.sum for p in parts]).sum()
    agree(Loss(total, sum(p.weight for p in parts)), whole, "of rows alone and of the batch")
    wanted = gradients(whole.sum, model)
    for name, gradient in gradients(total, model).items():
        close(gradient, wanted[name], f"gradient of {name} from rows alone and from the batch")
    turned = computed(method, model, world.batch(method, [i for rows in alone[::-1] for i in rows[::-1]]))
    agree(turned, whole, "in another order")


def check_accumulation(method: Objective, world: World) -> None:
    """Through the core's loop, micro-batches of one row (one group) are one batch of all: same losses, same weights."""
    found, n = [], len(world.examples)
    for size, pieces in ((method.group, n // method.group), (n, 1)):
        model = world.model()
        settings = TrainSettings(
            max_steps=2, per_device_train_batch_size=size, gradient_accumulation_steps=pieces, optim="sgd",
            learning_rate=0.05, warmup_ratio=0.0, lr_scheduler_type="constant", logging_steps=1, max_grad_norm=0.0,
        )  # fmt: skip
        references = world.untuned(method, world.model(reference=True))
        fitted = Loop(model, _Everything(), method, world.examples, settings, PAD, references=references).fit()
        found.append((torch.tensor([r["loss"] for r in fitted.log if "loss" in r]), model.state_dict()))
    (losses, weights), (whole_losses, whole_weights) = found
    close(losses, whole_losses, "losses of small micro-batches and of one")
    for name, tensor in weights.items():
        close(tensor, whole_weights[name], f"{name} after steps of small micro-batches and of one")


# ------------------------------------------------------------------------------------------- layouts


def check_padding(method: Objective, world: World) -> None:
    """Padding and what stands in it change nothing."""
    model, right = world.model(), world.batch(method)
    whole = computed(method, model, right)
    batch = replace(right, ids=torch.where(right.mask, right.ids, torch.full_like(right.ids, 9)))
    agree(computed(method, model, batch), whole, "with other ids in the padding")
    if method.task != "classification" or world.kind is GroupExample:  # task heads of encoders read the first column
        agree(computed(method, model, world.batch(method, layout="left")), whole, "padded left and right")


@causal
@kinds(TextExample)
def check_packing(method: Objective, world: World) -> None:
    """Several examples in a row give what they give apart."""
    model = world.model()
    agree(
        computed(method, model, world.batch(method, layout="packed")),
        computed(method, model, world.batch(method)),
        "packed",
    )


@causal
@kinds(GroupExample)
def check_shared_prompt(method: Objective, world: World) -> None:
    """A prompt computed once for all its answers gives what separate rows give, gradients too."""
    model = world.model()
    tree, apart = (computed(method, model, world.batch(method, layout=how)) for how in ("tree", "right"))
    agree(tree, apart, "with shared prompts and apart")
    wanted = gradients(apart.sum, model)
    for name, gradient in gradients(tree.sum, model).items():
        close(gradient, wanted[name], f"gradient of {name} with shared prompts and apart")


@token_level
def check_zero_gradient(method: Objective, world: World) -> None:
    """No gradient reaches the head from positions that do not count; some does from those that do.

    From each of them, unless the method says that scored tokens may be idle.
    """
    model, batch = world.model(), world.batch(method)
    seen: list[Any] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].requires_grad:
            args[0].retain_grad()
            seen.append(args[0])

    handle = last_module(model).register_forward_pre_hook(note)
    computed(method, model, batch).sum.backward()
    handle.remove()
    gradient = seen[-1].grad.flatten(0, -2).abs().sum(-1)
    scored = torch.zeros(len(gradient), dtype=torch.bool)
    scored[batch.source] = True  # type: ignore[index]
    require(bool((gradient[~scored] == 0).all()), "a position that does not count has a gradient")
    moved = gradient[scored] > 0
    require(bool(moved.any() if method.idle else moved.all()), "a position that counts has no gradient")


@vocabulary_level
def check_chunks(method: Objective, world: World) -> None:
    """The head in chunks of rows gives what the whole head gives, gradients too."""
    model, batch = world.model(), world.batch(method)
    whole = computed(method, model, batch)
    wanted = gradients(whole.sum, model)
    for chunk in (1, 3, 1000):
        parts = computed(method, model, batch, chunk)
        agree(parts, whole, f"in chunks of {chunk}")
        for name, gradient in gradients(parts.sum, model).items():
            close(gradient, wanted[name], f"gradient of {name} in chunks of {chunk}")


# ---------------------------------------------------------------------------------------- numbers, views


def check_extreme_logits(method: Objective, world: World) -> None:
    """Logits in the thousands give a finite loss and finite gradients."""
    model = world.model()
    with torch.no_grad():
        for parameter in last_module(model).parameters():
            parameter.mul_(3000.0)
    loss = computed(method, model, world.batch(method))
    finite(loss.sum, "loss at logits in the thousands")
    for name, gradient in gradients(loss.sum, model).items():
        finite(gradient, f"gradient of {name} at logits in the thousands")


def check_bf16(method: Objective, world: World) -> None:
    """In bfloat16 the sum is a finite float32 near that of float32."""
    batch = world.batch(method)
    loss = computed(method, world.model().to(torch.bfloat16), batch)
    require(loss.sum.dtype == torch.float32, f"the sum is {loss.sum.dtype}")
    wanted = computed(method, world.model(), batch).sum.detach()
    close(loss.sum.detach().to(torch.bfloat16), wanted, "loss in bfloat16")
    finite(loss.sum, "loss in bfloat16")


def check_view(method: Objective, world: World) -> None:
    """What the model is shown depends on the random state alone, and the batch itself is left as it was."""
    batch = world._collate(list(world.examples), "right")
    before = copy.deepcopy(batch)
    one, two = (method.view(batch, 3, 10, np.random.default_rng(5)) for _ in range(2))
    for key, value in vars(before).items():
        if isinstance(value, Tensor):
            same(getattr(batch, key), value, f"{key} of the batch that was viewed")
            same(getattr(one, key), getattr(two, key), f"{key} of two views with the same random state")
