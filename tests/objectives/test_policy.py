"""Rewards and policy gradients by their own mathematics: what clips, what is whitened, what a constant changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier.checks._models import PAD, answered, groups, model_of
from luthier.checks.objectives import computed, gradients, worlds
from luthier.core import catalog
from luthier.core.batch import GroupExample, LabelledExample, collate_groups, collate_labelled
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError
from luthier.objectives._policy import KL, ratio_of, surrogate
from luthier.objectives.ppo import advantages

torch.set_num_threads(1)
ONLINE = ("grpo", "rloo", "ppo")


def objective(name: str, **options: Any) -> Any:
    return replace(catalog.load("objectives", name).example(), **options)


def on_policy(told: Any) -> tuple[Any, Any]:
    """A model, and a batch of answers that it wrote itself."""
    model = model_of("llama")
    world = worlds(told)[0]
    with torch.no_grad():
        old = Scorer(model).token_logp(world.batch(told))
    parts = old.split([sum(map(len, e.answers)) for e in world.examples])
    examples = [replace(e, extras={**e.extras, "old": p, "ref": p}) for e, p in zip(world.examples, parts, strict=True)]
    examples = told.credit(examples, {})
    return model, collate_groups(examples, PAD, share_prompt=False)


# ------------------------------------------------------------------------------------------- reward model


def test_reward_does_not_change_with_a_constant_unless_it_is_centred() -> None:
    for options, moves in (({}, False), ({"center_rewards_coefficient": 0.1}, True)):
        told = objective("reward", **options)
        model = model_of("llama-classifier", num_labels=1)
        batch = collate_groups(groups(6), PAD, share_prompt=False)
        before = told.compute(Scorer(model), batch).sum
        run = model.score.forward
        model.score.forward = lambda x, run=run: run(x) + 3.0
        after = told.compute(Scorer(model), batch).sum
        assert torch.isclose(before, after, atol=1e-4).item() is not moves


def test_a_ranked_list_is_all_its_pairs_and_a_tie_is_none() -> None:
    """The mean over the pairs of each prompt, prompts alike; what is not ordered has no gradient."""
    told, model = objective("reward"), model_of("llama-classifier", num_labels=1)
    four = groups(1, 4)[0]
    assert len(four.answers) == 4
    for scores, ordered in (([4.0, 3.0, 2.0, 1.0], 6), ([2.0, 2.0, 1.0, 1.0], 4), ([1.0, 1.0, 1.0, 1.0], 0)):
        example = replace(four, scores=scores)
        loss = told.compute(Scorer(model), collate_groups([example], PAD, share_prompt=False))
        rows = [
            replace(example, answers=[example.answers[i], example.answers[j]], scores=[1.0, 0.0])
            for i in range(4)
            for j in range(4)
            if scores[i] > scores[j]
        ]
        assert len(rows) == ordered
        if not ordered:
            assert float(loss.sum) == 0
            continue
        alone = told.compute(Scorer(model), collate_groups(rows, PAD, share_prompt=False))
        assert torch.isclose(loss.sum / loss.weight, alone.sum / alone.weight, atol=1e-6)


@pytest.mark.parametrize("pad", [PAD, 3], ids=["own pad", "pad is the end token"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_reward_head_reads_the_last_real_token(side: str, pad: int) -> None:
    model = model_of("llama-classifier", num_labels=1, pad_token_id=pad)
    rows = [[7, 8, 9, 3], [10, 11, 3], [12, 13, 14, 15, 16, 3]]  # each ends in the end token, 3
    states = [model.model(input_ids=torch.tensor([r])).last_hidden_state[0, -1] for r in rows]
    wanted = torch.stack([model.score(s)[0] for s in states])
    batch = collate_labelled([LabelledExample(i, r, 0) for i, r in enumerate(rows)], pad, side)
    assert torch.allclose(Scorer(model).class_logits(batch)[:, 0], wanted, atol=1e-5)


# --------------------------------------------------------------------------------------- ratios and clips


@pytest.mark.parametrize("name", ONLINE)
def test_first_pass_has_the_plain_policy_gradient(name: str) -> None:
    told = objective(name, **({"vf_coef": 0.0} if name == "ppo" else {}))
    model, batch = on_policy(told)
    mine = gradients(computed(told, model, batch).sum, model)
    logp = Scorer(model).token_logp(batch)
    A = torch.cat(batch.extras["advantage"]).to(logp)
    A = A if len(A) == len(logp) else A[batch.owner]
    wanted = gradients(-(A * logp).sum(), model)
    for key, gradient in wanted.items():
        assert torch.allclose(mine[key], gradient, atol=2e-5), key
    assert any(float(g.abs().max()) > 1e-2 for g in wanted.values())


def test_no_gradient_where_the_ratio_has_left_in_the_direction_of_the_advantage() -> None:
    log_ratio = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.1], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    surrogate(ratio_of(log_ratio), advantage, 0.2, 0.2).sum().backward()
    assert (log_ratio.grad != 0).tolist() == [False, True, True, False, True]


def test_estimates_of_the_divergence() -> None:
    """k1 and k3 are right on average under pi; k2 and k3 never negative; all are 0 where nothing moved."""
    torch.manual_seed(0)
    pi, ref = torch.randn(2, 50, dtype=torch.float64).log_softmax(-1)
    exact = (pi.exp() * (pi - ref)).sum()
    for name in ("k1", "k3"):
        assert torch.isclose((pi.exp() * KL[name](pi, ref)).sum(), exact)
    for name, estimate in KL.items():
        assert (estimate(pi, pi) == 0).all()
        assert bool((estimate(pi, ref) >= 0).all()) is (name != "k1")


# ----------------------------------------------------------------------------------------------- credit


def test_advantages_of_a_group() -> None:
    example = answered()[1]  # three answers
    example = replace(example, scores=[1.0, 0.0, 2.0])
    plain = objective("grpo", scale_rewards="none").credit([example], {})[0].extras["advantage"]
    assert plain.tolist() == [0.0, -1.0, 1.0]
    scaled = objective("grpo").credit([example], {})[0].extras["advantage"]
    assert torch.allclose(scaled, plain / (1 + 1e-4))
    rloo = objective("rloo", beta=0.0).credit([example], {})[0].extras["advantage"]
    assert rloo.tolist() == [0.0, -1.5, 1.5]
    equal = objective("grpo").credit([replace(example, scores=[1.0] * 3)], {})[0].extras["advantage"]
    assert (equal == 0).all()
    with pytest.raises(LuthierError, match=r"rollouts.answers to 2"):
        objective("rloo").credit([GroupExample(0, [5], [[6]], [1.0], extras={"old": torch.zeros(1)})], {})


def test_gae_between_one_step_error_and_return() -> None:
    rewards, values = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([0.3, 0.2, -0.4]).double()
    returns = rewards.flip(0).cumsum(0).flip(0)
    ahead = torch.cat([values[1:], values.new_zeros(1)])
    assert torch.allclose(advantages(rewards, values, 1.0, 1.0), returns - values)
    assert torch.allclose(advantages(rewards, values, 0.9, 0.0), rewards + 0.9 * ahead - values)


def test_whitening_is_over_the_tokens_of_all_answers() -> None:
    found = objective("ppo").credit(answered(), {})
    everything = torch.cat([e.extras["advantage"] for e in found])
    assert len(everything) == sum(len(a) for e in answered() for a in e.answers)
    assert abs(float(everything.mean())) < 1e-9
    assert abs(float(everything.std(correction=0)) - 1) < 1e-6
    raw = objective("ppo", whiten=False).credit(answered(), {})
    for a, b in zip(found, raw, strict=True):
        assert torch.equal(a.extras["return"], b.extras["return"])  # values are never whitened


def test_reward_comes_with_the_last_token_and_is_clipped() -> None:
    example = replace(answered()[0], scores=[50.0, -50.0])
    found = objective("ppo", kappa=0.0, lam=1.0, whiten=False, reward_clip=10.0).credit([example], {})[0]
    n = len(example.answers[0])
    assert torch.allclose(found.extras["return"][:n], torch.full((n,), 10.0).double())
    assert torch.allclose(found.extras["return"][n:], torch.full((len(found.extras["return"]) - n,), -10.0).double())


def test_kappa_follows_the_divergence() -> None:
    def after(drift: float, **options: Any) -> dict[str, float]:
        memory: dict[str, float] = {}
        examples = [
            replace(e, extras={**e.extras, "ref": e.extras["old"] - drift / len(a)})
            for e in answered()
            for a in [e.answers[0]]
        ]
        objective("ppo", kappa=0.1, horizon=100.0, **options).credit(examples, memory)
        return memory

    assert after(50.0, target=1.0)["kappa"] > 0.1 > after(0.0, target=1.0)["kappa"]
    n = sum(len(e.answers) for e in answered())
    assert after(50.0, target=1.0)["kappa"] == pytest.approx(0.1 * (1 + 0.2 * n / 100))
    assert after(50.0) == {}
