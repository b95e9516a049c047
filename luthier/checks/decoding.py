"""What every decoder keeps: rows in a batch are rows alone, rows stop for themselves, and the distribution is the stated one."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any

import torch
from torch import nn

from luthier.checks._battery import on, when
from luthier.checks._compare import require
from luthier.checks._models import PAD, VOCABULARY, model_of
from luthier.core.method import Decoder, Generation, Limits
from luthier.core.mixture import Mixture, Other

PROMPTS = ([11, 25, 7], [30, 9, 41, 8, 52, 17], [64], [11, 25, 7, 33], [12, 13])
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
"""Settings of samplers at which they draw from the model's own distribution."""


@dataclass(frozen=True)
class World:
    """One architecture, sharpened so that likelihoods have no near ties."""

    label: str
    kind: str

    def model(self) -> Any:
        model = model_of(self.label)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(3.0)
        return model

    def other(self, name: Any) -> Other:
        """A model beside the one that is asked: the same architecture with other weights, by its name alone."""
        model, rng = self.model(), torch.Generator().manual_seed(zlib.crc32(str(name).encode()))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * p.std(unbiased=False) * torch.randn(p.shape, generator=rng))
        return Other(model, None, str(name))

    @torch.no_grad()
    def scores(self, model: Any, prompt: Sequence[int], said: Sequence[int]) -> torch.Tensor:
        """(V,) scores of what follows, read whole and without a cache; of every model of a sum."""
        if isinstance(model, Mixture):
            return model.combine([self.scores(m.model, m.wrap(prompt), said)[None] for m in model.members])[0]
        if self.kind == "decoder":
            logits = model(input_ids=torch.tensor([[*prompt, *said]])).logits
        else:
            read = torch.tensor([[model.config.decoder_start_token_id, *said]])
            logits = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=read).logits
        return logits[0, -1].double()

    def logp(self, model: Any, prompt: Sequence[int], said: Sequence[int]) -> torch.Tensor:
        """(V,) log-probabilities of what follows."""
        return self.scores(model, prompt, said).log_softmax(-1)


def worlds(method: Decoder) -> list[World]:
    return [World("llama", "decoder"), World("gpt2", "decoder"), World("t5", "encoder-decoder")]


def bound(check: Callable[[Any, World], None]) -> Callable[[Any, World], None]:
    """The check gets the method with the other models that it names, if it names any."""

    @wraps(check)
    def run(method: Decoder, world: World) -> None:
        check(method.for_models(world.other), world)

    return run


def _options(method: Decoder) -> set[str]:
    return {f.name for f in fields(method)}  # type: ignore[arg-type]


def same(a: Sequence[Generation], b: Sequence[Generation], what: str) -> None:
    require(len(a) == len(b), f"{what}: {len(a)} and {len(b)} generations")
    for row, (x, y) in enumerate(zip(a, b)):
        require((x.ids, x.stopped) == (y.ids, y.stopped), f"{what}: row {row} says {x.ids} and {y.ids}")
        require(abs(x.logp - y.logp) < 1e-3, f"{what}: row {row} has logp {x.logp:.5f} and {y.logp:.5f}")


def _shapes(method: Decoder) -> bool:
    """Whether it chooses by other scores than the model's."""
    return type(method).shaped is not Decoder.shaped


samples = when(lambda method: "temperature" in _options(method))
decoders = on(lambda world: world.label == "llama")


@bound
def check_alone(method: Decoder, world: World) -> None:
    """A row alone says what it says in a batch, whatever the padding and the order."""
    model, limits = world.model(), Limits(max_new_tokens=6, pad_id=PAD, seed=3)
    together = method.generate(model, PROMPTS, limits)
    alone = [method.generate(model, [p], limits)[0] for p in PROMPTS]
    same(together, alone, "in a batch and alone")
    turned = method.generate(model, PROMPTS[::-1], limits)[::-1]
    same(together, turned, "in another order")
    same(together, method.generate(model, PROMPTS, replace(limits, pad_id=5)), "with another padding id")


@bound
def check_repeatable(method: Decoder, world: World) -> None:
    """The same seed gives the same answers; torch's global random state neither matters nor moves; the model rests."""
    model, limits = world.model().train(), Limits(max_new_tokens=5, seed=1)
    weights = {n: p.detach().clone() for n, p in method.over(model).named_parameters()}
    first = method.generate(model, PROMPTS, limits)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    same(first, method.generate(model, PROMPTS, limits), "twice")
    require(torch.equal(state, torch.get_rng_state()), "decoding advanced torch's global generator")
    require(model.training, "decoding left the model in evaluation mode")
    for name, parameter in method.over(model).named_parameters():
        require(torch.equal(parameter, weights[name]) and parameter.grad is None, f"decoding touched {name}")


@bound
def check_stops(method: Decoder, world: World) -> None:
    """Each row ends at its own stop token, which is not part of it, or at max_new_tokens; others go on unchanged."""
    model, limits = world.model(), Limits(max_new_tokens=6, seed=3)
    free = method.generate(model, PROMPTS, limits)
    require(
        all(len(g.ids) == 6 and not g.stopped for g in free), "without stop tokens a row did not fill max_new_tokens"
    )
    stop = free[1].ids[2]
    found = method.generate(model, PROMPTS, replace(limits, stop_ids=(stop,)))
    for row, (g, before) in enumerate(zip(found, free)):
        require(stop not in g.ids, f"row {row} holds the stop token")
        require(g.stopped == (len(g.ids) < 6), f"row {row} has {len(g.ids)} of 6 tokens and stopped={g.stopped}")
        if method.exact and stop not in before.ids:
            require(g.ids == before.ids, f"row {row} changed although it never says the stop token")
    require(any(g.stopped for g in found) or not method.exact, "no row stopped")
    require(
        all(not g.ids for g in method.generate(model, PROMPTS, replace(limits, max_new_tokens=0))),
        "0 tokens were asked for",
    )


@bound
def check_logp(method: Decoder, world: World) -> None:
    """`logp` is the model's own log-probability of what was said, the stop token included, without a cache."""
    model, limits = world.model(), Limits(max_new_tokens=4, seed=5)
    stop = method.generate(model, PROMPTS[:1], limits)[0].ids[-1]
    for told in (limits, replace(limits, stop_ids=(stop,))):
        for prompt, g in zip(PROMPTS, method.generate(model, PROMPTS, told)):
            said = [*g.ids, stop] if g.stopped else g.ids
            wanted = sum(float(world.logp(method.over(model), prompt, said[:t])[token]) for t, token in enumerate(said))
            require(abs(g.logp - wanted) < 1e-3, f"logp {g.logp:.5f} of {said}, recomputed {wanted:.5f}")


@samples
@bound
def check_cold(method: Any, world: World) -> None:
    """At temperature 0, and in the limit towards it, the likeliest token is taken."""
    model, limits = world.model(), Limits(max_new_tokens=5, seed=2)
    wanted = [_greedy(method, world, model, prompt, limits) for prompt in PROMPTS]
    for temperature in (0.0, 1e-4):
        found = [g.ids for g in replace(method, temperature=temperature).generate(model, PROMPTS, limits)]
        require(found == wanted, f"temperature {temperature}: {found}, greedy says {wanted}")


@when(lambda method: "temperature" not in _options(method) and (method.exact or _shapes(method)))
@bound
def check_likeliest(method: Decoder, world: World) -> None:
    """An exact decoder that does not sample takes the likeliest token; one with rules of its own, the best by these."""
    model, limits = world.model(), Limits(max_new_tokens=5)
    wanted = [_greedy(method, world, model, prompt, limits) for prompt in PROMPTS]
    found = [g.ids for g in method.generate(model, PROMPTS, limits)]
    require(found == wanted, f"{found}, greedy says {wanted}")


@when(lambda method: not method.exact and not _shapes(method))
@bound
def check_better_than_greedy(method: Decoder, world: World) -> None:
    """A search that gives up exactness for likelihood finds, over all prompts, at least what greedy decoding finds."""
    model, limits = world.model(), Limits(max_new_tokens=5)
    found = sum(g.logp for g in method.generate(model, PROMPTS, limits))
    greedy = 0.0
    for prompt in PROMPTS:
        said = _greedy(method, world, model, prompt, limits)
        greedy += sum(float(world.logp(method.over(model), prompt, said[:t])[token]) for t, token in enumerate(said))
    require(found >= greedy - 1e-3, f"log-probability {found:.3f}, greedy reaches {greedy:.3f}")


def _greedy(method: Decoder, world: World, model: nn.Module, prompt: Sequence[int], limits: Limits) -> list[int]:
    """The likeliest token at a time, of those that the method allows. No stop tokens."""
    said: list[int] = []
    for _ in range(limits.max_new_tokens):
        logp, may = world.logp(method.over(model), prompt, said), method.allowed(said, limits)
        logp = method.shaped(logp, prompt, said, limits)
        said.append(int(logp.argmax()) if may is None else max(may, key=lambda t: float(logp[t])))
    return said


@when(lambda method: method.allowed([], Limits()) is not None)
@bound
def check_allowed(method: Decoder, world: World) -> None:
    """A decoder that states what may follow says nothing else, ends where it may, and states it by the text alone."""
    model, free = world.model(), Limits(max_new_tokens=9, seed=3)
    stop = next(
        t for t in range(VOCABULARY - 1, 0, -1) if all(t not in g.ids for g in method.generate(model, PROMPTS, free))
    )
    for limits in (free, replace(free, stop_ids=(stop,)), replace(free, stop_ids=(stop,), max_new_tokens=4)):
        for row, g in enumerate(method.generate(model, PROMPTS, limits)):
            for t, token in enumerate([*g.ids, stop] if g.stopped else g.ids):
                may = method.allowed(g.ids[:t], limits)
                require(may is not None and token in may, f"row {row} says {token} after {g.ids[:t]}; allowed: {may}")
                require(may == method.allowed(list(g.ids[:t]), limits), "the same text allows different tokens")


@samples
@when(lambda method: method.exact)
@decoders
@bound
def check_distribution(method: Any, world: World) -> None:
    """At neutral settings copies of a prompt are samples of the model's own distribution: first and second token."""
    n, model = 3000, world.model()
    neutral = replace(method, **{k: v for k, v in NEUTRAL.items() if k in _options(method)})
    said = neutral.generate(model, [PROMPTS[0]] * n, Limits(max_new_tokens=2, seed=11))
    p = world.logp(method.over(model), PROMPTS[0], []).exp()
    _fits([g.ids[0] for g in said], p, "first tokens")
    first = Counter(g.ids[0] for g in said).most_common(1)[0][0]
    p = world.logp(method.over(model), PROMPTS[0], [first]).exp()
    _fits([g.ids[1] for g in said if g.ids[0] == first], p, "second tokens")


def _fits(found: list[int], p: torch.Tensor, what: str) -> None:
    """Chi-square of counts against a distribution; rare tokens are one class. A wrong sampler is far beyond the limit."""
    n, counts = len(found), Counter(found)
    often = [v for v in range(VOCABULARY) if float(p[v]) * n >= 5]
    expected = [float(p[v]) * n for v in often]
    seen = [counts[v] for v in often]
    if n - sum(expected) > 1:
        expected, seen = [*expected, n - sum(expected)], [*seen, n - sum(seen)]
    chi2 = sum((s - e) ** 2 / e for s, e in zip(seen, expected))
    free = len(expected) - 1
    limit = free + 5 * (2 * free) ** 0.5
    require(chi2 < limit, f"{what}: chi-square {chi2:.1f} for {free} degrees of freedom (limit {limit:.1f})")
