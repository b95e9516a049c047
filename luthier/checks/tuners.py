"""What every tuner keeps, on every kind of model that it claims; kinds and capabilities it does not claim it refuses.

A *moved* model is one that took a few optimiser steps: at the start many properties hold by accident.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.checks._battery import Check, on, when
from luthier.checks._compare import VISIBLE, CheckFailed, close, differ, distance, finite, require, same
from luthier.checks._models import PAD, WORLDS, World
from luthier.core.adapt import add_adapter, folded, merged, switched_off
from luthier.core.anatomy import base_transformer, in_task_head
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import PartialTuner, Refusal, Tuner

STEPS = 4


def worlds(method: Tuner) -> list[World]:
    """Architectures that the method can tune: of a kind that it claims, and with the parts that it needs."""
    return [w for w in WORLDS if w.kind in method.kinds and not _missing(method, w)]


@cache
def _missing(method: Tuner, world: World) -> str:
    return method.missing(world.base())


def claims(capability: str) -> Callable[[Check], Check]:
    return when(lambda method: capability in method.capabilities)


def lacks(capability: str) -> Callable[[Check], Check]:
    return when(lambda method: capability not in method.capabilities)


is_adapter = when(lambda method: method.artefact == "adapter")
is_partial = when(lambda method: isinstance(method, PartialTuner))
decoders = on(lambda world: world.kind == "decoder")
writers = on(lambda world: world.kind != "encoder")
headed = on(lambda world: world.task == "classification")


# ------------------------------------------------------------------------------------------------- helpers


def wrapped(method: Tuner, world: World, seed: int = 0) -> Any:
    return method.wrap(world.base(), world.task, seed).eval()


_KEPT: OrderedDict[tuple[Tuner, World], nn.Module] = OrderedDict()


def moved(method: Tuner, world: World) -> Any:
    """A copy of the model after a few steps. The last ones made are kept."""
    key = (method, world)
    if key not in _KEPT:
        model = wrapped(method, world)
        world.train(model, STEPS)
        _KEPT[key] = model
        while len(_KEPT) > 2 * len(WORLDS):
            _KEPT.popitem(last=False)
    return copy.deepcopy(_KEPT[key])


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def snapshot(model: nn.Module) -> dict[int, Tensor]:
    return {id(p): p.detach().clone() for p in model.parameters()}


def own_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters under the names that they have in the base: those of wrappers are taken out."""
    out: dict[str, Tensor] = {}
    for name, parameter in base_transformer(model).named_parameters():
        parts = [p for p in name.split(".") if p not in ("base_layer", "original_module")]
        out[".".join(parts)] = parameter
    return out


def refuses(ask: Callable[[], Any], what: str) -> None:
    """One clear Refusal, in one line."""
    try:
        ask()
    except Refusal as error:
        require(bool(str(error)) and "\n" not in str(error), f"{what}: the refusal must be one clear line")
        return
    except Exception as error:
        raise CheckFailed(f"{what}: {type(error).__name__} instead of a Refusal ({error})") from None
    raise CheckFailed(f"{what}: neither claimed nor refused")


def loop(method: Tuner, world: World, model: nn.Module, steps: int, **more: Any) -> Loop:
    """The core's loop on a wrapped model, with weight decay."""
    told = {
        "max_steps": steps, "per_device_train_batch_size": 3, "learning_rate": 0.01, "weight_decay": 0.1,
        "warmup_ratio": 0.0, "lr_scheduler_type": "constant", **more,
    }  # fmt: skip
    return Loop(model, method, world.objective, world.examples, TrainSettings(**told), PAD)


# ------------------------------------------------------------------------------------- start, steps, counts


@claims("identity")
def check_identity(method: Tuner, world: World) -> None:
    """At the start the model is the base, in evaluation and in training mode."""
    base, model = world.base(), wrapped(method, world)
    close(world.said(model), world.said(base), "answers at the start")
    with torch.no_grad():
        close(world.answers(model.train(), world.batch()), world.said(base), "answers at the start in training mode")


@lacks("identity")
def check_start_differs(method: Tuner, world: World) -> None:
    """A tuner that does not claim the identity is not the base at its start: else the claim is missing."""
    differ(world.said(wrapped(method, world)), world.said(world.base()), "answers at the start")


def check_moves(method: Tuner, world: World) -> None:
    """One step changes what the model says; within a few steps every trainable tensor has a gradient."""
    model = wrapped(method, world)
    before = world.said(model)
    reached: set[str] = set()
    for _ in range(STEPS):
        world.train(model, 1)
        reached |= {n for n, p in trainable(model).items() if p.grad is not None and bool(p.grad.abs().max() > 0)}
    differ(world.said(model), before, f"answers after {STEPS} steps")
    idle = sorted(set(trainable(model)) - reached)
    require(not idle, f"{len(idle)} trainable tensors never had a gradient, the first is {idle[0] if idle else ''}")


def check_count(method: Tuner, world: World) -> None:
    """What moves is what the closed formula says; task heads are not counted."""
    told = method.parameter_count(world.base())
    found = sum(p.numel() for n, p in trainable(wrapped(method, world)).items() if not in_task_head(n))
    found -= _still_in_blocks(method, world)
    require(told == found, f"the formula says {told} trainable parameters, {found} are")


def _still_in_blocks(method: Tuner, world: World) -> int:
    """Scalars of trainable fused tensors that lie in frozen blocks."""
    if not isinstance(method, PartialTuner):
        return 0
    model = world.base()
    guard = method.select(model, random.Random(0)).guard(model)
    return sum(int((~moves).sum()) for _, moves, _ in guard.kept)


def check_frozen(method: Tuner, world: World) -> None:
    """After steps of the core's loop, with weight decay, what is frozen is bit-identical and has no optimiser state."""
    model = wrapped(method, world)
    base = {n: p.detach().clone() for n, p in own_names(world.base()).items()}
    runs = loop(method, world, model, 3)
    runs.fit()
    still = {n: p for n, p in own_names(model).items() if not p.requires_grad and n in base}
    for name, parameter in still.items():
        same(parameter.detach(), base[name], f"frozen tensor {name}")
    if not isinstance(method, PartialTuner):
        gone = [n for n in base if n not in still and not in_task_head(n)]
        require(not gone, f"a tensor of the base is not frozen: {gone[:1]}")
    state = {id(p) for p in runs.optimizer.state}
    kept = [n for n, p in model.named_parameters() if not p.requires_grad and id(p) in state]
    require(not kept, f"the optimiser keeps state for the frozen tensor {kept[:1]}")
    held = {id(p) for group in runs.optimizer.param_groups for p in group["params"]}
    require(held == {id(p) for p in trainable(model).values()}, "the optimiser does not hold exactly what moves")
    _blocks_still(runs, model, base)


def _blocks_still(runs: Loop, model: nn.Module, base: dict[str, Tensor]) -> None:
    """Frozen blocks of fused tensors are where they were, the others are not."""
    if runs.guard is None:
        return
    names = {id(p): n for n, p in own_names(model).items()}
    for parameter, moves, _ in runs.guard.kept:
        before = base[names[id(parameter)]]
        same(parameter.detach()[~moves], before[~moves], f"frozen blocks of {names[id(parameter)]}")
        require(not torch.equal(parameter.detach()[moves], before[moves]), f"{names[id(parameter)]}: no block moved")


@headed
def check_head_moves(method: Tuner, world: World) -> None:
    """A task head is new: it is trained whatever the tuner."""
    model = wrapped(method, world)
    heads = {n: p.detach().clone() for n, p in trainable(model).items() if in_task_head(n)}
    require(bool(heads), "the task head is not trainable")
    loop(method, world, model, 2).fit()
    for name, before in heads.items():
        require(not torch.equal(trainable(model)[name], before), f"task head {name} did not move")


def check_seeds(method: Tuner, world: World) -> None:
    """The same seed gives the same start; another gives another where anything is drawn; global generators rest."""
    base = {n: p.detach() for n, p in own_names(world.base()).items()}
    state = torch.get_rng_state()
    first, again, other = (trainable(wrapped(method, world, seed)) for seed in (1, 1, 2))
    require(torch.equal(state, torch.get_rng_state()), "wrapping advanced torch's global generator")
    require(first.keys() == again.keys(), "the same seed made other tensors trainable")
    for name, parameter in first.items():
        same(parameter, again[name], f"{name} with the same seed")
    new = [n for n in first if n in other and not in_task_head(n) and not any(_is(first[n], b) for b in base.values())]
    drawn = [n for n in new if first[n].numel() > 1 and bool(first[n].std() > 0)]
    moved_by_seed = [n for n in drawn if not torch.equal(first[n], other[n])]
    require(not drawn or bool(moved_by_seed), "another seed gives the same start")


def _is(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def check_repeatable(method: Tuner, world: World) -> None:
    """In evaluation mode a model says the same thing twice."""
    model = moved(method, world)
    same(world.said(model), world.said(model), "two evaluations")


@when(lambda method: len(worlds(method)) < len(WORLDS))
def check_other_kinds_refused(method: Tuner, world: World) -> None:
    """Model kinds that are not claimed, and models without a part that is needed, are refused."""
    for other in WORLDS:
        if other not in worlds(method):
            refuses(partial(method.wrap, other.base(), other.task), f"wrap of a {other.label} model")


# ----------------------------------------------------------------------------------- off, merge, several


@claims("off")
def check_off(method: Tuner, world: World) -> None:
    """Switched off, it is the base to the last bit; afterwards it is on again."""
    model = moved(method, world)
    before = world.said(model)
    with switched_off(method, model):
        off = world.said(model)
    same(off, world.said(world.base()), "answers when switched off")
    same(world.said(model), before, "answers after switching on again")
    differ(before, off, "answers on and off")


@lacks("off")
def check_off_refused(method: Tuner, world: World) -> None:
    model = wrapped(method, world)

    def ask() -> None:
        with switched_off(method, model):
            pass

    refuses(ask, "switching off")


@claims("merge")
def check_merge(method: Tuner, world: World) -> None:
    """Merged equals unmerged; unmerging restores; what is exported is an ordinary model."""
    model = moved(method, world)
    before = world.said(model)
    model.merge_adapter()
    close(world.said(model), before, "answers after merging in place")
    model.unmerge_adapter()
    close(world.said(model), before, "answers after unmerging")
    with switched_off(method, model):
        close(world.said(model), world.said(world.base()), "base after merging and unmerging")
    plain = merged(method, model)
    require(type(plain) is type(world.base()), f"the merged model is a {type(plain).__name__}")
    close(world.said(plain), before, "answers of the merged model")


@lacks("merge")
def check_merge_refused(method: Tuner, world: World) -> None:
    """Also where peft's own call is used."""
    model = wrapped(method, world)
    refuses(lambda: merged(method, model), "merging")
    if method.artefact == "adapter":
        refuses(lambda: copy.deepcopy(model).merge_and_unload(), "peft's merge_and_unload")
        refuses(lambda: copy.deepcopy(model).merge_adapter(), "peft's merge_adapter")


@claims("fold")
def check_fold(method: Tuner, world: World) -> None:
    """Folded for serving it says the same to the last bit, also when saved and loaded; only plain vectors are left."""
    from peft import PeftModel

    model = moved(method, world)
    before = world.said(model)
    same(world.said(folded(method, model)), before, "answers after folding")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(world.base(), folder).eval()
    same(world.said(again), before, "answers after folding, saving and loading")
    same(world.said(folded(method, again)), before, "answers after folding twice")


@lacks("fold")
def check_fold_refused(method: Tuner, world: World) -> None:
    model = wrapped(method, world)
    refuses(lambda: folded(method, model), "folding")


@claims("several")
def check_several(method: Tuner, world: World) -> None:
    """A second adapter starts as a first one does, and switching and deleting leave the first as it was."""
    model = moved(method, world)
    first = world.said(model)
    add_adapter(method, model, "second", world.task, seed=0)
    close(world.said(model), first, "first adapter after adding a second")
    model.set_adapter("second")
    second = world.said(model)
    close(second, world.said(wrapped(method, world)), "second adapter at its start")
    require(bool(trainable(model)), "the second adapter is active but nothing is trainable")
    world.train(model, 2)
    differ(world.said(model), second, "second adapter after training")
    model.set_adapter("default")
    close(world.said(model), first, "first adapter after training the second")
    model.delete_adapter("second")
    close(world.said(model), first, "first adapter after deleting the second")


@lacks("several")
def check_several_refused(method: Tuner, world: World) -> None:
    model = wrapped(method, world)
    refuses(lambda: add_adapter(method, model, "second", world.task), "a second adapter")


# ----------------------------------------------------------------------------------------- saving, loading


def check_reload(method: Tuner, world: World) -> None:
    """Saved and loaded by a fresh process, the model says the same to the last bit."""
    from luthier.checks._fresh import outcomes

    outcome = outcomes()[method.name, world.architecture]
    require(not outcome.error, outcome.error)
    assert outcome.wanted is not None
    require(outcome.found is not None, "the fresh process said nothing")
    same(outcome.found, outcome.wanted, "answers in a fresh process")  # type: ignore[arg-type]


@is_adapter
def check_resume(method: Tuner, world: World) -> None:
    """Loaded as trainable, the same tensors train on from where they were."""
    from peft import PeftModel

    model = moved(method, world)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(world.base(), folder, is_trainable=True).eval()
    same(world.said(again), world.said(model), "answers after loading")
    require(trainable(again).keys() == trainable(model).keys(), "other tensors are trainable after loading")
    before = world.said(again)
    world.train(again, 2)
    differ(world.said(again), before, "answers after training on")


def check_exported_keys(method: Tuner, world: World) -> None:
    """What is shipped as a model has the names and shapes of the base; an adapter comes off without a trace."""
    base = {n: t.shape for n, t in world.base().state_dict().items()}
    model = moved(method, world)
    if "merge" in method.capabilities:
        plain = merged(method, model)
    else:
        plain = model.unload() if method.artefact == "adapter" else model
    found = {n: t.shape for n, t in plain.state_dict().items()}
    odd = sorted(base.items() ^ found.items())
    require(not odd, f"names or shapes differ from the base: {odd[:1]}")


# ---------------------------------------------------------------------- time, batch, padding, layouts


@decoders
def check_causal(method: Tuner, world: World) -> None:
    """A later token does not change what was said before it."""
    model = moved(method, world)
    ids = world.batch().ids[:2, :8].clone()
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 7) % 50 + 5
    with torch.no_grad():
        a, b = (model(input_ids=x, attention_mask=torch.ones_like(x)).logits for x in (ids, other))
    close(a[:, :5], b[:, :5], "logits before a changed token")
    differ(a[:, 5:], b[:, 5:], "logits from the changed token on")


def check_batch(method: Tuner, world: World) -> None:
    """A row alone says what it says in a batch."""
    model = moved(method, world)
    alone = torch.cat([world.said(model, world.batch([e])) for e in world.examples])
    close(world.said(model), alone, "answers in a batch and alone")


def check_padding(method: Tuner, world: World) -> None:
    """Padding, on either side, changes nothing, and neither does what stands in it."""
    model, base = moved(method, world), world.base()
    right = world.batch()
    before = world.said(model, right)
    for side in ("right", "left"):
        batch = world.batch(side=side)
        if side == "left" and distance(world.said(base, batch), world.said(base, right)) > VISIBLE:
            continue  # a head that reads the first column: the base itself is for right padding only
        close(world.said(model, batch), before, f"answers with {side} padding")
        batch.ids[~batch.mask] = 9
        close(world.said(model, batch), before, f"answers with other ids under {side} padding")


@decoders
def check_packing(method: Tuner, world: World) -> None:
    """Several examples packed into a row say what they say apart."""
    model = moved(method, world)
    close(world.said(model, world.packed()), world.said(model), "answers packed and apart")


@decoders
def check_shared_prompt(method: Tuner, world: World) -> None:
    """Answers that share one computed prompt say what they say in rows of their own."""
    model = moved(method, world)
    shared, apart = (world.said(model, world.tree(share)) for share in (True, False))
    close(shared, apart, "answers in a tree and apart")


@claims("generate")
@writers
def check_generate(method: Tuner, world: World) -> None:
    """Greedy decoding with a cache gives the tokens and logits that it gives without, for padded prompts too."""
    model = moved(method, world)
    rows = world.batch(side="left") if world.kind == "decoder" else world.batch()
    prompts = {"input_ids": rows.ids, "attention_mask": rows.mask.long()}
    found = [_greedy(model, prompts, use_cache) for use_cache in (True, False)]
    require(torch.equal(found[0][0], found[1][0]), "cached and uncached decoding chose different tokens")
    close(found[0][1], found[1][1], "logits of cached and uncached decoding")
    example = world.examples[0]
    alone = torch.tensor([example.ids])
    single = _greedy(model, {"input_ids": alone, "attention_mask": torch.ones_like(alone)}, True)
    close(found[0][1][0], single[1][0], "logits of a prompt decoded in a padded batch and alone")


def _greedy(model: Any, prompts: dict[str, Tensor], use_cache: bool) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **prompts, max_new_tokens=5, min_new_tokens=5, do_sample=False, num_beams=1, use_cache=use_cache,
        output_logits=True, return_dict_in_generate=True, pad_token_id=PAD,
    )  # fmt: skip
    return out.sequences[:, -5:], torch.stack(out.logits, 1)


@lacks("generate")
@writers
def check_generate_refused(method: Tuner, world: World) -> None:
    model = wrapped(method, world)
    refuses(lambda: _greedy(model, {"input_ids": world.batch().ids[:1]}, True), "cached decoding")


# -------------------------------------------------------------------------------------------- training


def check_checkpointing(method: Tuner, world: World) -> None:
    """Gradient checkpointing, switched on after construction, gives the same gradients."""
    found = []
    for on_ in (False, True):
        model = moved(method, world)
        if on_:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        model.train()
        torch.manual_seed(0)
        world.loss(model).backward()
        found.append({n: p.grad for n, p in trainable(model).items()})
    for name, gradient in found[0].items():
        other = found[1][name]
        require((gradient is None) == (other is None), f"{name}: a gradient in one of two ways only")
        if gradient is not None and other is not None:
            close(other, gradient, f"gradient of {name} with checkpointing")


def check_bf16(method: Tuner, world: World) -> None:
    """In bfloat16 forward and backward are finite, and near the numbers of float32."""
    base: Any = world.base()  # transformers decorates `to`, which hides its signature
    model = method.wrap(base.to(torch.bfloat16), world.task, 0).train()
    loss = world.loss(model)
    finite(loss, "loss in bfloat16")
    loss.backward()
    for name, parameter in trainable(model).items():
        if parameter.grad is not None:
            finite(parameter.grad, f"gradient of {name} in bfloat16")
    if "identity" in method.capabilities:
        wanted = float(world.loss(wrapped(method, world)).detach())
        require(
            abs(float(loss) - wanted) < 0.05 * max(1.0, wanted),
            f"loss {float(loss):.3f} in bfloat16, {wanted:.3f} in float32",
        )


def check_overfits(method: Tuner, world: World) -> None:
    """Four short examples, each with one thing to say, can be learned at one of three rates: the loss falls by 40 %."""
    batch, told = world.batch(world.lessons), []
    for lr in (0.05, 0.01, 0.2):
        losses = world.train(wrapped(method, world), 60, lr, weight_decay=0.0, batch=batch, until=0.6)
        if losses[-1] < 0.6 * losses[0]:
            return
        told.append(f"to {min(losses):.3f} at rate {lr}")
    raise CheckFailed(f"the loss {losses[0]:.3f} fell only {', '.join(told)}")


# ------------------------------------------------------------------------------------- partial tuners


@is_partial
@claims("reselect")
def check_reselect(method: PartialTuner, world: World) -> None:
    """Draws of one seed agree, draws of stages differ, and what is frozen in each stage stays still in it."""
    model = world.base()

    def drawn(key: str) -> tuple[Any, Any]:
        selection = method.select(model, random.Random(key))
        return frozenset(selection.whole), str(sorted(selection.blocks.items()))

    require(drawn("0/0") == drawn("0/0"), "the same seed and stage drew twice differently")
    require(len({drawn(f"0/{stage}") for stage in range(8)}) > 1, "eight stages drew the same")


@is_partial
@lacks("reselect")
def check_reselect_refused(method: PartialTuner, world: World) -> None:
    """What a tuner without draws trains does not depend on the random state; asking it for draws is an error."""
    model = world.base()
    found = {frozenset(method.select(model, random.Random(s)).whole) for s in range(4)}
    require(len(found) == 1, "the trainable set depends on the random state, but 'reselect' is not claimed")


@is_partial
def check_nothing_else_moves(method: PartialTuner, world: World) -> None:
    """Selecting changes flags, never numbers, and a second selection forgets the first."""
    model, base = world.base(), world.base().state_dict()
    method.select(model, random.Random(1)).apply(model)
    selection = method.select(model, random.Random(2))
    selection.apply(model)
    for name, tensor in model.state_dict().items():
        same(tensor, base[name], f"{name} after selecting")
    again = world.base()
    method.select(again, random.Random(2)).apply(again)
    require(trainable(model).keys() == trainable(again).keys(), "the first selection left a trace in the second")
