"""CPT: balls, kinds of tokens, the labels of the context, and three things that peft's own type gets wrong."""

import pytest
import torch
from peft import PeftModel

from luthier.checks import tuners as battery
from luthier.checks._models import PAD, WORLDS, World, labelled
from luthier.core import catalog
from luthier.core.adapt import PromptPart, add_adapter, folded, prompt_labels
from luthier.core.batch import collate_labelled
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError
from luthier.tuners.cpt import context, kind

CPT, OBJECTIVE = catalog.load("tuners", "cpt"), catalog.load("objectives", "context_sft")
LLAMA = WORLDS[0]
TUNER = CPT(ids=(2, 11, 12, 40, 3, 13, 14, 41, 3), types=(0, 1, 2, 4, 0, 7, 6, 8, 0), epsilon_input=2, epsilon_format=1)


def part_of(model, name="default"):
    return next(m for n, m in model.named_modules() if isinstance(m, PromptPart) and n.endswith(name))


def trained(steps=3, lr=0.5):
    model = battery.wrapped(TUNER, LLAMA)
    battery.loop(TUNER, LLAMA, model, steps, learning_rate=lr, weight_decay=0.0).fit()
    return model.eval()


@pytest.mark.parametrize("world", [w for w in WORLDS if w.kind == "decoder"], ids=lambda w: w.architecture)
def test_the_start_is_the_written_context(world) -> None:
    model, base = battery.wrapped(TUNER, world), world.base()
    for e in world.examples:
        text, row = torch.tensor([[*TUNER.ids, *e.ids]]), torch.tensor([e.ids])
        wanted = base(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, len(TUNER.ids) :]
        found = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        assert torch.allclose(found, wanted, atol=1e-5)
    embedded = base.get_input_embeddings()(torch.tensor(TUNER.ids))
    assert torch.equal(part_of(model).prompt(), embedded)
    assert torch.equal(part_of(model).train().prompt(), embedded)


def test_rows_stay_inside_their_balls_and_labels_stay_put() -> None:
    """After large steps, in training and evaluation mode, and in what is saved."""
    part = part_of(trained())
    share = (32 / 2048) ** 0.5
    radius = {0: 0.0, 1: 1 * share, 2: 2 * share, 3: 1 * share, 4: 0.0}
    for mode in (True, False):
        distance = (part.train(mode).prompt() - part.rows).norm(dim=1).tolist()
        for d, type_ in zip(distance, TUNER.types, strict=True):
            assert d <= radius[kind(type_)] + 1e-6
            assert (d > 0) == (kind(type_) in (1, 2, 3))
    assert max(distance) > 0.9 * 2 * share  # the balls were reached


def test_no_ball_is_the_context_itself() -> None:
    tuner = CPT(ids=TUNER.ids, types=TUNER.types, epsilon_input=0, epsilon_format=0)
    model = battery.wrapped(tuner, LLAMA)
    before = LLAMA.said(model)
    LLAMA.train(model, 3)
    assert torch.equal(LLAMA.said(model), before)
    assert torch.isfinite(part_of(model).delta).all()


@pytest.mark.parametrize("type_", range(13))
def test_kinds(type_: int) -> None:
    assert kind(type_) == (0 if type_ == 0 else (type_ % 4 or 4))


# -------------------------------------------------------------------------------------- the loss on labels


def test_weights_fall_with_age() -> None:
    """One example, decay 1/2: the row's label counts 1, that of the context 1/2; and other tokens do not count."""
    tuner = CPT(ids=(2, 11, 40, 3), types=(0, 2, 4, 0))
    model, e = battery.wrapped(tuner, LLAMA), LLAMA.lessons[0]
    loss = OBJECTIVE(decay=0.5).compute(Scorer(model), LLAMA.batch([e]))
    logp = LLAMA.base()(input_ids=torch.tensor([[2, 11, 40, 3, *e.ids]])).logits[0].log_softmax(-1)
    wanted = -logp[-2, e.ids[-1]] - 0.5 * logp[1, 40]
    assert torch.allclose(loss.sum, wanted, atol=1e-5)
    assert loss.weight == 1


def test_labels_of_several_adapters_are_counted_from_the_end() -> None:
    m, labels = prompt_labels(battery.wrapped(TUNER, LLAMA))
    assert m == 9
    assert [(x.row, x.token, x.age) for x in labels] == [(3, 40, 1), (7, 41, 0)]


def test_gradients_reach_the_context_from_its_own_labels() -> None:
    """Rows before a context's label are moved by it even where the row's own tokens count nothing."""
    tuner = CPT(ids=(2, 11, 40, 12, 3), types=(0, 2, 4, 6, 0))
    model = battery.wrapped(tuner, LLAMA).train()
    for decay, moves in ((0.95, True), (0.0, False)):
        batch = LLAMA.batch(LLAMA.lessons)
        batch.weights = torch.zeros(len(batch.target))
        model.zero_grad()
        OBJECTIVE(decay=decay).compute(Scorer(model), batch).sum.backward()
        gradient = part_of(model).delta.grad
        assert bool(gradient[0].abs().max() > 0) == moves
        assert not gradient[1].any()  # it comes after the only label


@pytest.mark.parametrize("size", [1, 2, 6])
def test_accumulation_and_layouts_do_not_matter(size: int) -> None:
    model, objective, rows = trained(), OBJECTIVE(), list(LLAMA.examples)
    whole = objective.compute(Scorer(model), LLAMA.batch())
    for side in ("right", "left"):
        parts = [objective.compute(Scorer(model), LLAMA.batch(rows[i : i + size], side)) for i in range(0, 6, size)]
        assert torch.allclose(sum(p.sum for p in parts), whole.sum, rtol=1e-5)
        assert sum(p.weight for p in parts) == whole.weight
    assert torch.allclose(objective.compute(Scorer(model), LLAMA.packed()).sum, whole.sum, rtol=1e-5)


# ------------------------------------------------------------------------- what peft's own type gets wrong


def test_what_the_caller_gives_stays_as_it_was() -> None:
    """peft's adds the context's types to the caller's mask, so that a batch that is used again grows."""
    model, batch = battery.wrapped(TUNER, LLAMA), LLAMA.batch()
    kept = {k: v.clone() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    first, second = (OBJECTIVE().compute(Scorer(model), batch).sum for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(getattr(batch, k), v) for k, v in kept.items())
    assert LLAMA.said(model).shape == LLAMA.said(LLAMA.base()).shape  # the prompt's states are cut off again


def test_an_adapter_of_any_name_has_its_own_context() -> None:
    """peft's loss looks for an adapter called "default"."""
    model = battery.wrapped(TUNER, LLAMA)
    default = OBJECTIVE().compute(Scorer(model), LLAMA.batch()).sum
    other = CPT(ids=(2, 50, 40, 3), types=(0, 2, 4, 0))
    add_adapter(other, model, "other", "causal_lm")
    model.set_adapter("other")
    model.delete_adapter("default")
    alone = battery.wrapped(other, LLAMA)
    found, wanted = (OBJECTIVE().compute(Scorer(m), LLAMA.batch()).sum for m in (model, alone))
    assert torch.allclose(found, wanted)
    assert not torch.allclose(found, default)


def test_training_goes_on_around_the_same_centres(tmp_path) -> None:
    """peft's stores the sum only and cannot be loaded to be trained."""
    model = trained()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(LLAMA.base(), tmp_path, is_trainable=True)
    before, after = part_of(model), part_of(again)
    assert torch.equal(before.rows, after.rows)
    assert torch.equal(before.delta, after.delta)
    battery.loop(TUNER, LLAMA, again, 2, learning_rate=0.5, weight_decay=0.0).fit()
    assert not torch.equal(before.delta, after.delta)
    assert float((after.eval().prompt() - before.rows).norm(dim=1).max()) <= 2 * (32 / 2048) ** 0.5 + 1e-6


# ---------------------------------------------------------------------------------------- making the context


class Letters:
    """A tokenizer of single letters that may begin every text with a token."""

    def __init__(self, bos=None):
        self.bos_token_id = bos

    def __call__(self, text, add_special_tokens=True):
        begin = [self.bos_token_id] if self.bos_token_id is not None and add_special_tokens else []
        return {"input_ids": begin + [ord(c) for c in text]}


def test_context_from_examples() -> None:
    ids, types = context([("ab", "x"), ("c", "yz")], Letters(bos=1), "<{}>", "={}.", "|", "\n")
    assert "".join(map(chr, ids[1:])) == "<ab>|=x.\n<c>|=yz.\n"
    assert ids[0] == 1
    assert types == (0, 1, 2, 2, 1, 0, 3, 4, 3, 0, 5, 6, 5, 0, 7, 8, 8, 7, 0)
    assert context([("a", "b")], Letters(), "{}", "{}", "", "") == ((97, 98), (2, 4))


def test_for_data_fills_in_once() -> None:
    tuner = CPT(examples=(("a", "b"),)).for_data(Letters())
    assert tuner.ids == (97, 98, 10)
    assert tuner.for_data(Letters(bos=1)) is tuner
    assert CPT().for_data(Letters()) == CPT()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CPT().wrap(LLAMA.base(), "causal_lm"), r"tuner\.examples"),
        (lambda: CPT(ids=(1, 2), types=(1,)), r"tuner\.types has 1 entries for 2"),
        (lambda: CPT(epsilon_input=-1), "negative"),
        (lambda: CPT(examples=(("a", "b"),), input_template="no place").for_data(Letters()), "once"),
        (lambda: CPT(ids=(999,), types=(2,)).wrap(LLAMA.base(), "causal_lm"), r"tuner\.ids"),
    ],
)
def test_mistakes_are_errors(make, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        make()


def test_serves_a_classifier() -> None:
    world = World("llama-classifier", "classification", "decoder")
    model = TUNER.wrap(world.base(), "classification").eval()
    rows = list(labelled())
    right, left = (model(**collate_labelled(rows, PAD, side).inputs()).logits for side in ("right", "left"))
    assert torch.allclose(right, left, atol=1e-5)


def test_folded_has_no_labels_left() -> None:
    model = folded(TUNER, trained())
    assert prompt_labels(model) == (9, [])
