"""What a tuned model and its frozen copy have in common: held once, and run once where both read the same batch.

    h = layers_{<k}(batch)        log pi from the tuned model's layers_{>=k} on h, log pi_ref from the copy's on the same h

k is found in the graph of one real step: the first layer whose output needs a gradient. Frozen tensors of the copy are the
tuned model's own, so that beside it there is no more than what moves; and the copy begins at layer k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import anatomy, base_transformer, kind_of


class Trunk:
    """The layers below the first that moves, of the tuned model (`own`) and of the copy (`theirs`)."""

    def __init__(self, own: list[nn.Module], theirs: list[nn.Module]):
        self.own, self.theirs = own, theirs

    @contextmanager
    def once(self) -> Iterator[None]:
        """While active the copy begins with what the tuned model's trunk said last: run the tuned model first."""
        if not self.own:
            yield
            return
        said: list[Tensor] = []

        def keep(module: nn.Module, args: Any, out: Any) -> None:
            said[:] = [out if isinstance(out, Tensor) else out[0]]

        def passed(last: bool) -> Callable[..., Tensor]:
            return lambda *args, **kwargs: said[0] if last else (args[0] if args else kwargs["hidden_states"])

        handle = self.own[-1].register_forward_hook(keep)
        try:
            for layer in self.theirs:
                layer.forward = passed(layer is self.theirs[-1])  # type: ignore[method-assign]
            yield
        finally:
            handle.remove()
            for layer in self.theirs:
                layer.__dict__.pop("forward", None)


def share(model: nn.Module, copy: nn.Module, run: Callable[[], Any]) -> Trunk:
    """Make the frozen tensors of `copy` those of `model`, whose `run` is a forward pass with gradient."""
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    for name, parameter in copy.named_parameters():
        if name in frozen:
            parameter.data = frozen[name].data
    if kind_of(model) == "encoder-decoder":
        return Trunk([], [])
    own, theirs = (
        [base_transformer(m).get_submodule(layer.name) for layer in anatomy(m).layers] for m in (model, copy)
    )
    moves: list[bool] = []

    def note(module: nn.Module, args: Any, out: Any) -> None:
        moves.append((out if isinstance(out, Tensor) else out[0]).requires_grad)

    handles = [layer.register_forward_hook(note) for layer in own]
    training = model.training
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            run()
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    k = next((i for i, moving in enumerate(moves) if moving), len(own))
    return Trunk(own[:k], theirs[:k])
