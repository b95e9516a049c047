"""Rewards as plain functions: rows of the data and an answer to each, as text, to one number each.

    module:function, {function: ...}         any Python function of (rows, answers); `module` may be a file, path/to/file.py
    {world: sequence}                        the exact checker of a world of the sandbox, on rows of that world
    {scorer: answer, ...}                    what a scorer of answers says (its first metric, or `metric`), with its options
    {model: FOLDER}                          a model with a task head, read on prompt and answer: the number that a head with
                                             one output gives (a reward model), or with `label` log p of that class
    [.., {.., weight: 0.5}]                  a sum

A row is a dict of its columns. A model reads prompt and answer with the end token, as rows of preferences have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from luthier.core.config import ConfigError, build
from luthier.core.functions import function_named
from luthier.core.method import LuthierError
from luthier.core.rollouts import Reward

Row = dict[str, Any]


def reward_of(told: str | Mapping[str, Any] | Sequence[Any] | Reward) -> Reward:
    """The function that a recipe's `rollouts.reward` names. Raises ConfigError for what cannot be one."""
    if callable(told):
        return told
    if isinstance(told, str):
        return _function(told, {})
    if isinstance(told, Mapping):
        return _weighted(dict(told))
    parts = [reward_of(t) for t in told]
    if not parts:
        raise ConfigError("rollouts.reward is an empty list: name what judges an answer")

    def total(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
        return [sum(each) for each in zip(*(part(rows, answers) for part in parts), strict=True)]

    return total


def _weighted(told: dict[str, Any]) -> Reward:
    weight = float(told.pop("weight", 1.0))
    kind = next((k for k in _KINDS if k in told), None)
    if kind is None:
        raise ConfigError(f"rollouts.reward: one of {', '.join(_KINDS)} is needed, not {', '.join(told) or 'nothing'}")
    reward = _KINDS[kind](told.pop(kind), told)
    return reward if weight == 1 else lambda rows, answers: [weight * float(s) for s in reward(rows, answers)]


def _nothing_left(told: Mapping[str, Any]) -> None:
    if told:
        raise ConfigError(f"rollouts.reward: unknown key '{next(iter(told))}'")


def _function(name: str, told: dict[str, Any]) -> Reward:
    _nothing_left(told)
    return function_named(name, "rollouts.reward", ", or {world: ...}, {scorer: ...}, {model: ...}", ConfigError)


def _world(name: str, told: dict[str, Any]) -> Reward:
    from luthier import sandbox

    _nothing_left(told)
    try:
        world = sandbox.world(name)
    except ValueError as error:
        raise ConfigError(f"rollouts.reward: {error}") from None
    return lambda rows, answers: [float(world.score(r, a)) for r, a in zip(rows, answers, strict=True)]


def _scorer(name: str, told: dict[str, Any]) -> Reward:
    from luthier.evaluation._family import TextScorer, items_of

    metric = told.pop("metric", None)
    scorer = build("evaluation", {"name": name, **told}, "rollouts.reward")
    if not isinstance(scorer, TextScorer):
        raise ConfigError(f"rollouts.reward: scorer '{name}' does not judge one answer at a time")
    metric = metric or next(iter(scorer.metrics))
    if metric not in scorer.metrics:
        raise ConfigError(f"rollouts.reward: scorer '{name}' has no metric '{metric}' ({', '.join(scorer.metrics)})")

    def judged(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
        return [scorer.judge(a, item)[metric] for a, item in zip(answers, items_of(rows), strict=True)]

    return judged


def _model(name: str, told: dict[str, Any]) -> Reward:
    """A model with a task head. It is loaded when it is first asked."""
    label, size = told.pop("label", None), int(told.pop("batch_size", 32))
    _nothing_left(told)
    held: list[Any] = []

    @torch.no_grad()
    def judged(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
        from luthier.core.batch import LabelledExample, collate_labelled
        from luthier.core.logprobs import Scorer
        from luthier.data._tokens import tokenise
        from luthier.data.chat import Chat
        from luthier.verbs.load import calm, load

        if not held:
            with calm():
                held.append(load(name, "classification"))
            held[0].model.eval()
        loaded = held[0]
        scorer, out = Scorer(loaded.model), []
        pairs = [{"prompt": row["prompt"], "completion": answer} for row, answer in zip(rows, answers, strict=True)]
        texts = [text for pair in pairs for text in Chat().texts(pair, loaded.tokenizer)]
        ids = [tokens.ids for tokens in tokenise(texts, loaded.tokenizer)]
        for start in range(0, len(ids), size):
            rows_of = [LabelledExample(i, r, 0) for i, r in enumerate(ids[start : start + size])]
            logits = scorer.class_logits(
                collate_labelled(rows_of, loaded.tokenizer.pad_token_id).to(scorer.device)
            ).float()
            out += _said(logits, label, loaded).tolist()
        return out

    return judged


def _said(logits: torch.Tensor, label: Any, loaded: Any) -> torch.Tensor:
    names = {str(v): int(k) for k, v in loaded.model.config.id2label.items()}
    if label is None and logits.shape[1] == 1:
        return logits[:, 0]
    if label is None or (str(label) not in names and not (isinstance(label, int) and label < logits.shape[1])):
        raise LuthierError(f"rollouts.reward: model '{loaded.name}' has classes: say label: one of {', '.join(names)}")
    return logits.log_softmax(-1)[:, names.get(str(label), label)]


_KINDS: dict[str, Callable[[Any, dict[str, Any]], Reward]] = {
    "function": _function,
    "world": _world,
    "scorer": _scorer,
    "model": _model,
}
