"""Input embeddings changed on their way into the model, for one batch at a time.

`changed_embeddings` lets a function change the embeddings of one grid of ids, whatever the architecture, the tuner or the
prompt in front; nothing else that the model embeds is touched, and the weights stay as they are. `uniform_noise` is the
noise of NEFTune, `normal_noise` a start for adversarial steps, `kept_numbers` dropout that no split of a step changes:

    embedding + alpha / sqrt(L D) u,    u uniform in (-1, 1)         L tokens of the sequence, D width

u depends on a key, the data row and the place in the sequence alone, and L is that of the row's longest sequence: padding,
packing, a shared prompt and the split of a step change nothing.

B rows, T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch

Draw = Callable[[int, torch.Generator], Tensor]


@contextmanager
def changed_embeddings(model: nn.Module, ids: Tensor, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While active, the embeddings (B, T, D) of exactly this tensor of ids go through `change`, which works out of place."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
        seen = args[0] if args else kwargs["input"]
        if seen.data_ptr() != ids.data_ptr() or seen.numel() != ids.numel():
            return None
        return change(out.view(*ids.shape, out.shape[-1])).to(out.dtype).view_as(out)

    handles = [m.register_forward_hook(hook, with_kwargs=True) for m in _tables(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def embedding_weight(model: nn.Module) -> Tensor:
    """The table (V, D) that input ids are looked up in."""
    return _tables(model)[0].weight  # type: ignore[return-value]


def _tables(model: Any) -> list[nn.Module]:
    """The modules that embed ids: one for each half of an encoder-decoder."""
    halves = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model]
    return [half.get_input_embeddings() for half in halves]


def by_row(batch: Batch, width: int, key: int, device: torch.device, draw: Draw) -> Tensor:
    """(B, T, width) on the batch's input grid, zero on padding: what `draw` gives each data row, by place in its sequence.

    `draw(length, generator)` is (length, width); the generator depends on key and data row alone.
    """
    place, row = batch.sequences()
    rows, where = row.unique(return_inverse=True)  # -1, padding, is the first where there is any
    longest = torch.zeros(len(rows), dtype=torch.long, device=place.device)
    longest = longest.scatter_reduce(0, where.flatten(), place.flatten() + 1, "amax")  # (rows,)
    noise = torch.zeros(*place.shape, width, device=device)
    generator = torch.Generator(device)
    for i, (r, length) in enumerate(zip(rows.tolist(), longest.tolist(), strict=True)):
        if r < 0:
            continue
        mine = where == i
        noise[mine] = draw(length, generator.manual_seed((key + r) % 2**62))[place[mine]]
    return noise


def uniform_noise(batch: Batch, alpha: float, key: int, width: int, device: torch.device) -> Tensor:
    """(B, T, width) on the batch's input grid, zero on padding."""

    def draw(length: int, generator: torch.Generator) -> Tensor:
        u = 2 * torch.rand(length, width, generator=generator, device=device) - 1
        return alpha / math.sqrt(length * width) * u

    return by_row(batch, width, key, device, draw)


def normal_noise(batch: Batch, sigma: float, key: int, width: int, device: torch.device) -> Tensor:
    """(B, T, width) of sigma N(0, 1), zero on padding."""

    def draw(length: int, generator: torch.Generator) -> Tensor:
        return sigma * torch.randn(length, width, generator=generator, device=device)

    return by_row(batch, width, key, device, draw)


def kept_numbers(batch: Batch, share: float, key: int, width: int, device: torch.device) -> Tensor:
    """(B, T, width): 0 with chance `share`, else 1; 0 on padding."""

    def draw(length: int, generator: torch.Generator) -> Tensor:
        return (torch.rand(length, width, generator=generator, device=device) >= share).float()

    return by_row(batch, width, key, device, draw)


@contextmanager
def noisy(model: nn.Module, batch: Batch, alpha: float, key: int) -> Iterator[None]:
    """NEFTune's noise on the batch's input embeddings. Of an encoder-decoder the encoder reads it."""

    def change(embedded: Tensor) -> Tensor:
        return embedded + uniform_noise(batch, alpha, key, embedded.shape[-1], embedded.device).to(embedded.dtype)

    with changed_embeddings(model, batch.ids, change):
        yield


class same_dropout:
    """The random state of the place where it is made, to be gone back to: `with` it, a model draws the same dropout again.

    Afterwards the state is what it was before the `with`.
    """

    def __init__(self, device: torch.device):
        self.devices = [] if device.type == "cpu" else [device]
        self.states = self._now()

    def _now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.get_device_module(d).get_rng_state(d) for d in self.devices)]

    def _put(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)

    def __enter__(self) -> None:
        self.before = self._now()
        self._put(self.states)

    def __exit__(self, *error: object) -> None:
        self._put(self.before)
