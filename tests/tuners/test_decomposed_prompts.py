"""DePT and EPT: the unit properties of their cards that the common checks do not hold."""

import math

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import WORLDS, model_of
from luthier.core import catalog
from luthier.core.adapt import folded
from luthier.core.method import LuthierError

DEPT, EPT, PROMPT = (catalog.load("tuners", n) for n in ("dept", "ept", "prompt_tuning"))
LLAMA = WORLDS[0]
SMALL = {"tokens": 3, "r": 2, "max_length": 7}


def part_of(model):
    from luthier.core.adapt import PromptPart

    return next(m for m in model.modules() if isinstance(m, PromptPart))


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.architecture)
def test_the_start_is_prompt_tuning_with_the_same_seed(world) -> None:
    said = [world.said(battery.wrapped(t, world, 3)) for t in (PROMPT(tokens=3), DEPT(**SMALL), EPT(**SMALL))]
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


def test_no_prompt_and_no_correction_is_the_frozen_model() -> None:
    world = LLAMA
    assert torch.equal(world.said(battery.wrapped(DEPT(tokens=0, r=2, max_length=7), world)), world.said(world.base()))


@pytest.mark.parametrize(("m", "r"), [(20, 60), (40, 45), (60, 30), (80, 15)])
def test_the_papers_ranks_give_the_budget_exactly(m: int, r: int) -> None:
    tuner = DEPT(tokens=m)
    assert tuner.rank(768) == r
    assert m * 768 + r * (256 + 768) == 100 * 768


def test_the_budget_counts_all_that_is_trained() -> None:
    base = model_of("llama")  # D = 32
    for tuner in (DEPT(tokens=4, budget=40, max_length=16), EPT(tokens=4, budget=40, max_length=16, bottleneck=2)):
        count = tuner.parameter_count(base)
        assert 40 * 32 - (16 + 32) < count <= 40 * 32
    assert EPT(tokens=40, r=15, spaces=2).spent(768) + 40 * 768 + 15 * 1024 == 72_195  # the card's example
    assert DEPT().rank(768) == 45
    assert EPT().rank(768) == 19
    with pytest.raises(LuthierError, match=r"tuner\.budget: 5 rows of 32"):
        DEPT(tokens=4, budget=5).rank(32)


def test_two_rates_and_no_tensor_forgotten() -> None:
    world = WORLDS[3]  # with a task head, which is no prompt
    for tuner in (DEPT(**SMALL, lr_ratio=0.25), EPT(**SMALL, lr_ratio=0.25)):
        model = battery.wrapped(tuner, world)
        run = battery.loop(tuner, world, model, 1, learning_rate=0.4)
        run.fit()
        names = {id(p): n for n, p in model.named_parameters()}
        rates = {names[id(p)]: g["lr"] for g in run.optimizer.param_groups for p in g["params"]}
        assert rates.keys() == battery.trainable(model).keys()
        assert {n: lr for n, lr in rates.items() if lr != pytest.approx(0.1)} == {
            n: pytest.approx(0.4) for n in rates if n.endswith(".rows")
        }


def test_corrections_follow_the_mask_and_end() -> None:
    """Nothing on padding wherever it is, nothing from position s on, and the embeddings that come in stay as they are."""
    part = part_of(battery.moved(DEPT(**SMALL), LLAMA))
    embedded = torch.zeros(2, 10, 32)
    mask = torch.tensor([[False] * 2 + [True] * 8, [True] * 10])
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    out = part.correct(embedded, positions, mask).detach()
    table = part.correction().detach()
    assert torch.equal(out[0], torch.cat([torch.zeros(2, 32), table, torch.zeros(1, 32)]))
    assert torch.equal(out[1], torch.cat([table, torch.zeros(3, 32)]))
    assert not embedded.any()


def test_parts_keep_full_precision_on_a_half_precision_base() -> None:
    model = DEPT(**SMALL).wrap(LLAMA.base().to(torch.bfloat16), "causal_lm", 0)
    assert {p.dtype for p in battery.trainable(model).values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert part_of(model).prompt().dtype == torch.float32


def test_an_instruction_is_cycled_or_cut() -> None:
    base = LLAMA.base()
    table = base.get_input_embeddings().weight
    for ids, wanted in (((5, 6), [5, 6, 5]), ((9, 8, 7, 6), [9, 8, 7])):
        part = part_of(DEPT(**SMALL, ids=ids).wrap(LLAMA.base(), "causal_lm"))
        assert torch.equal(part.rows, table[wanted])
    with pytest.raises(LuthierError, match=r"tuner\.ids"):
        DEPT(**SMALL, ids=(96,)).wrap(base, "causal_lm")


def test_only_prompt_and_correction_have_gradients() -> None:
    model = battery.moved(DEPT(**SMALL), LLAMA).train()
    LLAMA.loss(model).backward()
    assert sorted(n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.grad is not None) == ["A", "B", "rows"]


# ---------------------------------------------------------------------------------------------------- EPT


def ept_part(**options):
    tuner = EPT(**{**SMALL, "bottleneck": 3, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        part = tuner.build(8, torch.randn(20, 8)).double()
        with torch.no_grad():
            for name in ("B", "U", "W_g", "b_g"):
                getattr(part, name).normal_()
    return part


def test_one_space_is_one_bottleneck() -> None:
    part = ept_part(spaces=1)
    fused = part.fused()
    assert torch.equal(part.weights(fused), torch.ones(1, 1, dtype=torch.float64))
    assert torch.allclose(part.prompt(), fused + torch.relu(fused @ part.V[0]) @ part.U[0], atol=1e-12)


@pytest.mark.parametrize("gate", ["prompt", "token"])
def test_gates_sum_to_one(gate: str) -> None:
    weights = ept_part(gate=gate).weights(ept_part(gate=gate).fused())
    assert weights.shape == ((3 if gate == "token" else 1), 2)
    assert torch.allclose(weights.sum(-1), torch.ones(len(weights), dtype=torch.float64))


@pytest.mark.parametrize("fusion", ["plain", "projected"])
@pytest.mark.parametrize("gate", ["prompt", "token"])
def test_gradients_by_finite_differences(fusion: str, gate: str) -> None:
    """P is reached as prompt, as query and through the gate; A and B are not detached in the fusion."""
    part = ept_part(fusion=fusion, gate=gate)
    names, tensors = zip(*part.named_parameters(), strict=True)

    def prompt(*values):
        return torch.func.functional_call(
            _Asked(part), {f"part.{n}": v for n, v in zip(names, values, strict=True)}, ()
        )

    assert torch.autograd.gradcheck(prompt, tensors, eps=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(part.prompt().square().sum(), tensors)
    assert all(bool(g.abs().max() > 0) for g in gradients)


class _Asked(torch.nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self):
        return self.part.prompt()


def test_a_start_that_is_not_dead() -> None:
    part = EPT(**SMALL).build(8, torch.randn(20, 8))
    assert not part.U.any() and not part.W_g.any() and not part.B.any()
    assert bool(part.V.all()) and bool(part.A.all())
    assert float(part.V.std()) == pytest.approx(1 / math.sqrt(8), rel=0.3)


def test_folding_leaves_plain_vectors_and_says_so_in_numbers() -> None:
    tuner, world = EPT.example(), LLAMA
    model = battery.moved(tuner, world)
    folded(tuner, model)
    kept = {n: p.shape for n, p in model.named_parameters() if "luthier_ept" in n}
    assert sorted(kept.values()) == [(3, 32), (7, 32)]
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in world.base().parameters()) == (
        EPT(**SMALL, folded=True).parameter_count(world.base())
    )
