"""GreenTrainer: the unit tests of its card, and the card's own figures."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS, texts
from luthier.checks.oracles.tuners_green import _probe
from luthier.core import catalog
from luthier.core.budget import backward_budget, best_set
from luthier.core.flops import counter, graph_cost
from luthier.core.method import LuthierError
from luthier.core.runs import RunFolder
from luthier.core.trainable import Selection

GREEN = catalog.load("tuners", "green")
LLAMA = WORLDS[0]
B, T, D, F, V, L = 2, 32, 64, 256, 200, 4


@pytest.fixture(scope="module")
def opt():
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=L, ffn_dim=F, num_attention_heads=4, max_position_embeddings=64,
        word_embed_proj_dim=D, attn_implementation="eager", dropout=0.0,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    ids = torch.randint(5, V, (B, T))
    loss_of = lambda: model(input_ids=ids, labels=ids).loss  # noqa: E731
    names = [n for n, _ in model.named_parameters()]
    return model, loss_of, graph_cost(model, {n: [n] for n in names}, loss_of)


def counted(model, loss_of, names) -> int:
    for n, p in model.named_parameters():
        p.requires_grad_(n in names)
    loss = loss_of()
    with counter() as spent:
        loss.backward()
    return spent.get_total_flops()


def test_the_figures_of_the_card(opt) -> None:
    cost = opt[2]
    layer = 4 * B * T * D * D + 2 * B * T * D * F + 2 * B * T * T * D
    assert cost.forward == 2 * (L * layer + B * T * D * V) == 28_901_376
    assert cost.full == 2 * cost.forward  # a lookup has no product, and the tied head passes its gradient on
    fc1 = {k: cost.backward(cost.bits([f"model.decoder.layers.{k}.fc1.weight"])) for k in range(L)}
    assert fc1[3] == 2 * B * T * D * V + 2 * (2 * B * T * D * F) == 5_832_704
    assert [round(fc1[k] / 1e6, 1) for k in range(L)] == [27.9, 20.5, 13.2, 5.8]  # depth is the cost, not the count


def test_the_graph_is_right_for_single_tensors_and_branches(opt) -> None:
    """Where only q, k or v of a layer moves, the graph does not visit its siblings; a chain would."""
    model, loss_of, cost = opt
    rng = random.Random(0)
    at = "model.decoder.layers.2.self_attn."
    picks = [[f"{at}{p}_proj.weight"] for p in "qkv"] + [[f"{at}q_proj.bias", f"{at}v_proj.weight"]]
    picks += [rng.sample(cost.units, k) for k in (1, 1, 1, 2, 3, 8)]
    for names in picks:
        assert cost.backward(cost.bits(names)) == counted(model, loss_of, names), names
    one, three = cost.backward(cost.bits(picks[0])), cost.backward(cost.bits(f"{at}{p}_proj.weight" for p in "qkv"))
    assert three > one + 2 * 2 * B * T * D * D  # two more own gradients, and the other branch


def test_everything_costs_the_whole_and_the_nearest_tensor_least(opt) -> None:
    _, _, cost = opt
    assert cost.backward((1 << len(cost.units)) - 1) == cost.full
    single = {n: cost.backward(1 << k) for k, n in enumerate(cost.units)}
    assert min(single, key=single.get).startswith("model.decoder.final_layer_norm")


def test_everything_useful_at_budget_one(opt) -> None:
    _, _, cost = opt
    rng = random.Random(3)
    value = [rng.uniform(-1, 1) for _ in cost.units]
    found = best_set(cost, value, backward_budget(1.0, cost, "budget"))
    assert found.bits == sum(1 << k for k, v in enumerate(value) if v > 0)


def test_larger_budgets_are_worth_more_and_never_overrun(opt) -> None:
    _, _, cost = opt
    rng = random.Random(4)
    value = [rng.uniform(0, 1) for _ in cost.units]
    worth = []
    for share in (0.45, 0.5, 0.6, 0.7, 0.85, 1.0):
        found = best_set(cost, value, backward_budget(share, cost, "budget"))
        assert cost.forward + found.flops <= share * (cost.forward + cost.full)
        worth.append(found.value)
    assert worth == sorted(worth)


@pytest.mark.parametrize(("share", "message"), [(0.2, "the forward pass and the cheapest unit"), (0.0, "above 0")])
def test_budgets_that_cannot_be_kept(opt, share: float, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        backward_budget(share, opt[2], "tuner.budget")


def test_a_probe_leaves_no_trace() -> None:
    probe = _probe(LLAMA)
    model = probe.model
    names = [n for n, _ in model.named_parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    probe.losses[0]().backward()
    optimizer.step()
    probe.state = dict(optimizer.state)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    grads = {n: p.grad for n, p in model.named_parameters()}
    Selection(whole=set(names[:3])).apply(model)
    rng = torch.get_rng_state()
    assert set(probe.importance(names)) == set(names)
    probe.cost({n: [n] for n in names})
    for i, (name, parameter) in enumerate(model.named_parameters()):
        assert torch.equal(parameter, weights[name])
        assert parameter.requires_grad == (i < 3)
        assert i >= 3 or parameter.grad is grads[name]
        assert all(torch.equal(v, state[parameter][k]) for k, v in optimizer.state[parameter].items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert probe.first(1).flops[0] > 0


def test_moments_count_in_the_probe() -> None:
    """With Adam's moments of the run the step is another one than a first step."""
    probe = _probe(LLAMA)
    names = [n for n, _ in probe.model.named_parameters()]
    fresh = probe.delta(names)
    optimizer = torch.optim.AdamW(probe.model.parameters(), lr=0.003)
    for parameter in probe.model.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(5.0), "exp_avg": torch.ones_like(parameter), "exp_avg_sq": torch.ones_like(parameter)
        }  # fmt: skip
    probe.state = dict(optimizer.state)
    assert any(not torch.allclose(fresh[n], d) for n, d in probe.delta(names).items())


def run_of(tuner, steps: int, folder=None, seen=None):
    model = battery.wrapped(tuner, LLAMA)
    run = battery.loop(tuner, LLAMA, model, steps, save_strategy="steps", save_steps=1)
    run.examples = texts(6)
    if folder is not None:
        run.run = folder
    return run


def test_chosen_anew_every_interval_and_still_in_between() -> None:
    run = run_of(GREEN(budget=0.7, interval=1), 6)  # three epochs of two steps
    kept: list[dict] = []
    original = run._select

    def select(epoch: int) -> None:
        if kept:
            for name, parameter in run.plain.named_parameters():
                assert parameter.requires_grad or torch.equal(parameter, kept[-1][name]), name
        original(epoch)
        kept.append({n: p.detach().clone() for n, p in run.plain.named_parameters()})

    run._select = select
    cost = run.fit().cost
    told = [row["selection"] for row in run.history if "selection" in row]
    assert len(kept) == len(told) == 3
    assert all(0 < t["share_of_full"] <= 0.7 for t in told)
    steps = sum(t["share_of_full"] * t["full_flops"] for t in told)  # two batches a choice: the whole epoch
    assert cost["choice_flops"] == 3 * sum(t["full_flops"] for t in told)  # recorded once, two gradients
    assert cost["train_flops"] - cost["choice_flops"] == pytest.approx(steps, rel=0.03)


def test_a_converged_model_goes_on_with_what_moved() -> None:
    """Where no step promises anything, the first choice is an error and a later one keeps the last."""
    run = run_of(GREEN(budget=0.7, interval=1), 4)
    run._prepare()
    first, still = run._probe(0), lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    assert first.moves is None
    with pytest.raises(LuthierError, match="from the start"):
        run.tuner.choose(run.plain, replace(first, optimizer=still))
    again = run.tuner.choose(run.plain, replace(run._probe(1), optimizer=still))
    assert again.whole == run.selection.whole
    assert again.note != run.selection.note


def test_a_resumed_run_trains_what_the_uninterrupted_one_trained(tmp_path) -> None:
    ends = []
    for stop in (None, 3):
        folder = RunFolder(tmp_path / str(stop))
        folder.create({})
        run = run_of(GREEN(budget=0.7, interval=1), 5, folder)
        if stop is None:
            run.fit()
        else:
            run.callbacks = [_Stop(stop)]
            run.fit()
            run = run_of(GREEN(budget=0.7, interval=1), 5, folder)
            run.fit(resume=folder.path / f"checkpoint-{stop}")
        ends.append((run.plain.state_dict(), run.selection.whole, run.train_flops))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(t, ends[1][0][n]) for n, t in ends[0][0].items())
    assert ends[0][2] == pytest.approx(ends[1][2])


class _Stop:
    """Ends a run after some steps."""

    def __init__(self, after: int):
        self.after = after

    def __getattr__(self, event: str):
        def look(loop, *told) -> None:
            if event == "step" and loop.step_index == self.after:
                loop.stop_reason = "enough"

        return look
