"""What one A for all adapters means, the card's counts, and the traps that the common checks do not reach."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from luthier.checks import tuners as battery
from luthier.core.adapt import add_adapter, norm_modules, switched_off
from luthier.core.method import LuthierError
from luthier.tuners._hypercomplex import PHM, AdapterPart, LowRank, LowRankPHM, SlowWeights
from luthier.tuners.compacter import Compacter
from luthier.tuners.compacter_plus import CompacterPlus
from luthier.tuners.low_rank_adapter import LowRankAdapter
from luthier.tuners.phm import Phm

TUNER = Compacter.example()
WORLD = battery.worlds(TUNER)[0]


def parts(model: nn.Module, name: str = "default") -> list[AdapterPart]:
    return [m.parts[name] for m in model.modules() if hasattr(m, "parts_name") and name in m.parts]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 1), (4, 1), (4, 2), (4, 3)])
def test_factored_path_is_the_kronecker_sum(n: int, rank: int) -> None:
    layer = LowRankPHM(24, 8, n, rank).double()
    A, x = drawn(n, n, n), drawn(3, 5, 24)
    B = [layer.s[i] @ layer.t[i].T for i in range(n)]
    assert all(torch.linalg.matrix_rank(b) <= rank for b in B)
    W = sum(torch.kron(A[i], B[i]) for i in range(n))
    torch.testing.assert_close(layer(x, A), x @ W + layer.bias, rtol=1e-12, atol=1e-12)
    block = sum(A[i, 0, n - 1] * B[i] for i in range(n))  # block (a, c) is A[a, c] B
    torch.testing.assert_close(W[: 24 // n, 8 - 8 // n :], block)


def test_full_factors() -> None:
    layer, x = PHM(12, 6, 3, 0.5).double(), drawn(4, 12)
    W = sum(np.kron(a, b) for a, b in zip(layer.A.detach().numpy(), layer.B.detach().numpy(), strict=True))
    torch.testing.assert_close(layer(x), x @ torch.from_numpy(W) + layer.bias)


def test_one_term_with_a_one_is_the_low_rank_adapter() -> None:
    one, low = LowRankPHM(12, 4, 1, 2), LowRank(12, 4, 2)
    low.load_state_dict({"s": one.s[0], "t": one.t[0], "bias": one.bias})
    x = torch.randn(5, 12)
    torch.testing.assert_close(one(x, torch.ones(1, 1, 1)), low(x))


def test_counts_of_the_card() -> None:
    """T5-base: width 768, bottleneck 24, 48 sites or 24, 62 norms of 768; the model has 222,882,048 parameters."""
    tuner = Compacter(size=24)
    assert tuner.site_count(768) == 3 * (768 + 24) == 2376
    assert 48 * tuner.site_count(768) + 4**3 == 114_112
    assert 24 * CompacterPlus(size=24).site_count(768) + 4**3 == 57_088
    assert round(100 * (114_112 + 62 * 768) / 222_882_048, 3) == 0.073
    assert round(100 * (57_088 + 62 * 768) / 222_882_048, 3) == 0.047
    assert Phm(size=24, n=12).site_count(768) == 2 * (12**3 + 768 * 24 // 12) + 768 + 24
    assert LowRankAdapter(size=24).site_count(768) == tuner.site_count(768)


def test_norms_of_an_encoder_decoder_without_cross_attention_adapters() -> None:
    world = next(w for w in battery.worlds(TUNER) if w.architecture == "t5")
    layers = 2
    assert len(norm_modules(world.base())) == layers * (2 + 3) + 2  # as 62 = 12 * 5 + 2 in T5-base
    sites = TUNER.target_modules(world.base())
    assert len(sites) == 2 * 2 * layers and not [s for s in sites if "EncDec" in s]


def one_tensor(model: nn.Module, name: str = "default") -> bool:
    return len({id(p.shared.A) for p in parts(model, name)}) == 1


def test_shared_tensor_stays_one() -> None:
    model = battery.moved(TUNER, WORLD)
    assert len(parts(model)) == 4
    for kept in (model, copy.deepcopy(model), copy.deepcopy(model).to(torch.float64), copy.deepcopy(model).half()):
        assert one_tensor(kept)
        A = [p for n, p in kept.named_parameters() if n.endswith("shared.A")]
        assert len(A) == 1 and A[0] is parts(kept)[-1].shared.A


def test_stored_once_and_loaded_under_any_name(tmp_path) -> None:
    model = battery.moved(TUNER, WORLD)
    said = WORLD.said(model)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len([k for k in stored if "shared" in k]) == 1
    assert sum(t.numel() for t in stored.values()) == TUNER.parameter_count(WORLD.base())
    for low in (False, True):
        again = PeftModel.from_pretrained(WORLD.base(), tmp_path, adapter_name="other", low_cpu_mem_usage=low).eval()
        assert one_tensor(again, "other") and torch.equal(WORLD.said(again), said)
    again.load_adapter(str(tmp_path), adapter_name="third")
    assert one_tensor(again, "third") and parts(again, "third")[0].shared is not parts(again, "other")[0].shared


def test_each_adapter_has_its_own() -> None:
    model = battery.wrapped(TUNER, WORLD)
    add_adapter(TUNER, model, "second", WORLD.task, seed=5)
    first, second = parts(model), parts(model, "second")
    assert one_tensor(model) and one_tensor(model, "second")
    assert not torch.equal(first[0].shared.A, second[0].shared.A)
    assert first[0].shared.A.requires_grad and not second[0].shared.A.requires_grad
    model.set_adapter("second")
    assert second[0].shared.A.requires_grad and not first[0].shared.A.requires_grad
    model.delete_adapter("second")
    assert parts(model, "second") == []


def test_gradient_is_the_sum_over_untied_copies() -> None:
    tied = battery.moved(TUNER, WORLD)
    untied = copy.deepcopy(tied)
    for part in parts(untied):
        A = part.shared.A
        part.shared = SlowWeights(TUNER.n, 1.0)
        part.shared.A.data.copy_(A)
    for model in (tied, untied):
        model.zero_grad()
        WORLD.loss(model).backward()
    total = sum(p.shared.A.grad for p in parts(untied))
    assert len({id(p.shared.A) for p in parts(untied)}) == 4
    torch.testing.assert_close(parts(tied)[0].shared.A.grad, total)


def test_optimiser_sees_it_once() -> None:
    model = battery.wrapped(TUNER, WORLD)
    runs = battery.loop(TUNER, WORLD, model, 2)
    runs.fit()
    held = [p for g in runs.optimizer.param_groups for p in g["params"]]
    assert sum(p is parts(model)[0].shared.A for p in held) == 1


def test_switched_off_the_norms_are_the_bases_own() -> None:
    model = battery.moved(TUNER, WORLD)
    copies = [p for n, p in model.named_parameters() if "modules_to_save" in n]
    assert len(copies) == len(norm_modules(WORLD.base())) and all(p.requires_grad for p in copies)
    with switched_off(TUNER, model):
        assert torch.equal(WORLD.said(model), WORLD.said(WORLD.base()))


@pytest.mark.parametrize("tuner", [Compacter(n=5, size=8), Phm(n=3, size=9), CompacterPlus(n=16, size=8)])
def test_n_must_divide(tuner) -> None:
    with pytest.raises(LuthierError, match=rf"tuner.n is {tuner.n}.*width 32 and tuner.size.*nearest n is"):
        tuner.wrap(WORLD.base(), WORLD.task)
