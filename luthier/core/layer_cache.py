"""Activations below the lowest layer that moves, computed once per example and reused: a step then runs the rest alone.

    h_i = layers_{<k}(example i)            (T_i, D), the same at every visit where nothing below layer k moves

k is found in the graph of one real step: the first layer whose output needs a gradient. In a batch the frozen layers
are passed over and layer k is given the kept states of the batch's examples; masks, positions and everything above run
as always, so packed rows and shared prompts need nothing else. Of an encoder-decoder the whole encoder is kept.

Examples are computed in groups of nearly equal length that depend on the data alone, when the first of a group is asked
for: kept numbers do not depend on the order of visits, on resuming, or on how a step is split. They equal those of the
plain way to the last bit where rows have the same padded length, elsewhere up to the rounding of other shapes.

It cannot be exact, and is refused, where inputs change from visit to visit (an objective with a `view`), where frozen
layers draw random numbers (dropout; measured, not looked up), with gradient checkpointing, and with sharded weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from luthier.core.anatomy import anatomy, base_transformer, kind_of
from luthier.core.batch import Batch, Example, GroupExample, SearchExample, SourceTargetExample, TextExample, pack
from luthier.core.flops import counter
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError, Objective

MEMORY_BYTES = 2 * 2**30
"""States held in memory; what needs more goes to a file, and only where the setting is `true`."""
GROUP = 16
Place = tuple[int, int, int]
"""(row of the batch, first token, tokens)."""


MOVES = "nothing stands still below the first layer that moves: freeze the lowest layers"


class CannotCache(LuthierError):
    """Reusing activations would not be exact here, or would save nothing; the message says why."""


class _Reached(Exception):
    """The forward pass has gone as far as it is needed."""


class LayerCache:
    """Kept activations of one run, for what moves now. Raises CannotCache.

    run      a real step's forward pass: batch -> loss (with gradient);  probe  a batch for it
    collate  examples -> batch;  packed_length and share_prompt as in the loop's Collator
    folder   for the file where states do not fit into memory; None: they must fit
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        collate: Any,
        run: Callable[[Batch], Tensor],
        probe: Batch,
        folder: Path | None = None,
    ):
        self.model, self.examples, self.collate = model, examples, collate
        self.layers, self.embedding = _sections(model)
        if any(p.requires_grad for m in (self.embedding, self.layers[0]) for p in m.parameters()):
            raise CannotCache(MOVES)  # told without running the model
        self.depth, self.flops_per_token = self._measure(run, probe.to(next(model.parameters()).device))
        self.served = 0  # padded tokens that passed over the frozen layers
        order = sorted(range(len(examples)), key=lambda i: (_tokens(examples[i]), i))
        self.groups = [order[i : i + GROUP] for i in range(0, len(order), GROUP)]
        self.group_of = {i: g for g in self.groups for i in g}
        lengths = [_tokens(e, collate.share_prompt) for e in examples]
        self.store = _Store(lengths, self.dtype, self.width, folder, self._key)

    def _measure(self, run: Callable[[Batch], Tensor], batch: Batch) -> tuple[int, float]:
        """How many layers stand still, and what a padded token costs in them. They must say the same thing twice."""
        was_training = self.model.training
        self.model.train()
        found: list[list[Tensor]] = []
        spent: list[int] = []
        depth = 0
        try:
            for seed in (0, 1):
                outputs: list[Tensor] = []
                with torch.random.fork_rng(enabled=True), torch.enable_grad(), counter() as flops:
                    torch.manual_seed(seed)

                    def note(module: nn.Module, args: Any, out: Any, to: list[Tensor] = outputs) -> None:
                        to.append(_state(out))
                        spent.append(flops.get_total_flops())

                    handles = [layer.register_forward_hook(note) for layer in self.layers]
                    try:
                        run(batch)
                    finally:
                        for handle in handles:
                            handle.remove()
                found.append(outputs[: len(self.layers)])
                depth = next((i for i, h in enumerate(found[0]) if h.requires_grad), len(found[0]))
                if depth == 0:
                    raise CannotCache(MOVES)
        finally:
            self.model.train(was_training)
        first, second = (outputs[depth - 1].detach() for outputs in found)
        if not torch.equal(first, second):
            raise CannotCache("the frozen layers draw random numbers: set the model's dropout to 0")
        self.dtype, self.width = first.dtype, first.shape[-1]
        return depth, spent[depth - 1] / batch.ids.numel()

    def _key(self) -> str:
        """By the model's frozen weights, the data and where the states are taken."""
        digest = hashlib.sha256(f"{self.depth}/{self.dtype}/{self.width}/{GROUP}/{self.collate}".encode())
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                digest.update(name.encode())
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        for example in self.examples:
            digest.update(repr(_ids(example)).encode())
        return digest.hexdigest()

    # filling ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _fill(self, rows: Sequence[int], device: torch.device, context: Callable[[], Any]) -> None:
        """Compute the groups of `rows` that are not kept yet."""
        scorer = Scorer(self.model)
        for first in rows:
            if self.store.has(first):
                continue
            group = self.group_of[first]
            batch = self.collate([self.examples[i] for i in group]).to(device)
            states: list[Tensor] = []

            def stop(module: nn.Module, args: Any, out: Any, to: list[Tensor] = states) -> None:
                to.append(_state(out))
                raise _Reached

            handle = self.layers[self.depth - 1].register_forward_hook(stop)
            try:
                with context():
                    scorer.run(batch)
            except _Reached:
                pass
            finally:
                handle.remove()
            for i, places in zip(group, self._places(group), strict=True):
                self.store.put(i, torch.cat([states[0][b, at : at + n] for b, at, n in places]))

    def _places(self, rows: Sequence[int]) -> list[list[Place]]:
        """Where the tokens of each example are in the batch that `collate` makes of them."""
        examples = [self.examples[i] for i in rows]
        if isinstance(examples[0], TextExample) and self.collate.packed_length:
            out: list[list[Place]] = [[] for _ in rows]
            for b, row in enumerate(pack([len(e) for e in examples], self.collate.packed_length)):
                at = 0
                for i in row:
                    out[i] = [(b, at, len(examples[i]))]
                    at += len(examples[i])
            return out
        if isinstance(examples[0], GroupExample) and not self.collate.share_prompt:
            out, b = [], 0
            for e in examples:
                out.append([(b + k, 0, len(e.prompt) + len(a)) for k, a in enumerate(e.answers)])  # type: ignore[union-attr]
                b += len(out[-1])
            return out
        if isinstance(examples[0], SearchExample):
            out, b = [], sum(bool(e.query) for e in examples)  # type: ignore[union-attr]
            for i, e in enumerate(examples):
                own = [(i, 0, len(e.query))] if e.query else []  # type: ignore[union-attr]
                out.append(own + [(b + k, 0, len(d)) for k, d in enumerate(e.documents)])  # type: ignore[union-attr]
                b += len(e.documents)  # type: ignore[union-attr]
            return out
        return [[(b, 0, _tokens(e, self.collate.share_prompt))] for b, e in enumerate(examples)]

    # serving ------------------------------------------------------------------------------------------

    @contextmanager
    def serving(self, rows: Sequence[int], batch: Batch, context: Callable[[], Any]) -> Iterator[None]:
        """While active, the model run on `batch` (made of examples `rows`) starts at the lowest layer that moves.

        Where it is run on anything else, it runs as always.
        """
        self._fill(rows, batch.ids.device, context)
        states = torch.zeros(*batch.ids.shape, self.width, dtype=self.dtype)
        for i, places in zip(rows, self._places(rows), strict=True):
            kept, at = self.store.get(i), 0
            for b, start, n in places:
                states[b, start : start + n] = kept[at : at + n]
                at += n
        states = states.to(batch.ids.device, non_blocking=True)
        active = False

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal active
            ids = kwargs.get("input_ids", args[0] if args else None)
            active = isinstance(ids, Tensor) and ids.data_ptr() == batch.ids.data_ptr() and ids.shape == batch.ids.shape
            if active:
                self.served += batch.ids.numel()

        def bypass(layer: nn.Module, last: bool) -> Callable[..., Any]:
            own = layer.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                if not active:
                    return own(*args, **kwargs)
                if self.encoder:
                    return BaseModelOutput(last_hidden_state=states)
                return states if last else (args[0] if args else kwargs["hidden_states"])

            return forward

        handle = self.embedding.register_forward_pre_hook(look, with_kwargs=True)
        skipped = self.layers[: self.depth]
        try:
            for i, layer in enumerate(skipped):
                layer.forward = bypass(layer, i == self.depth - 1)  # type: ignore[method-assign]
            yield
        finally:
            handle.remove()
            for layer in skipped:
                layer.__dict__.pop("forward", None)

    @property
    def encoder(self) -> bool:
        return self.layers[0] is self.embedding

    @property
    def saved_flops(self) -> float:
        """Operations of frozen layers that were not run again."""
        return self.flops_per_token * self.served


def layer_cache(
    model: nn.Module,
    objective: Objective,
    examples: Sequence[Example],
    collate: Any,
    run: Callable[[Batch], Tensor],
    probe: Batch,
    wanted: bool | str,
    worthwhile: bool,
    sharded: bool,
    checkpointing: bool,
    folder: Path,
    noise: bool = False,
) -> LayerCache | None:
    """The cache that `train.cache_frozen_layers` asks for: "auto" uses it where it is exact, pays and fits into memory;
    True insists, and raises LuthierError with the reason where it cannot be."""
    if wanted is False or (wanted == "auto" and not worthwhile):
        return None
    try:
        if type(objective).view is not Objective.view:
            raise CannotCache(f"objective '{objective.name}' changes its inputs from visit to visit")
        if noise:
            raise CannotCache("neftune_noise_alpha changes the embeddings from visit to visit")
        if objective.reference == "model":
            raise CannotCache(f"objective '{objective.name}' runs the untuned model as well")
        if checkpointing:
            raise CannotCache("gradient_checkpointing makes every layer take part: switch it off")
        if sharded:
            raise CannotCache("sharded weights cannot be passed over: train with DDP or on one device")
        return LayerCache(model, examples, collate, run, probe, folder if wanted is True else None)
    except CannotCache as error:
        if wanted is True:
            raise LuthierError(f"train.cache_frozen_layers: {error}, or set it to auto") from None
        return None


def _sections(model: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """What can be passed over, in order, and the module that sees the ids first."""
    base: Any = base_transformer(model)
    if kind_of(model) == "encoder-decoder":
        encoder = base.get_encoder()
        return [encoder], encoder
    body = anatomy(model)
    return [base.get_submodule(layer.name) for layer in body.layers], base.get_submodule(body.embedding)


def _state(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _ids(example: Example) -> Any:
    if isinstance(example, GroupExample):
        return example.prompt, example.answers
    if isinstance(example, TextExample | SourceTargetExample):
        return example.ids
    if isinstance(example, SearchExample):
        return example.sequences, example.type_ids
    return example.ids, example.type_ids


def _tokens(example: Example, share_prompt: bool = False) -> int:
    """Tokens whose states are kept: those of the prompt once for every answer where they are computed so."""
    if isinstance(example, GroupExample) and not share_prompt:
        return sum(len(example.prompt) + len(a) for a in example.answers)
    return len(example.ids) if isinstance(example, SourceTargetExample) else len(example)


class _Store:
    """States by example: in memory, or in one file that a later run with the same key finds again."""

    def __init__(
        self, lengths: Sequence[int], dtype: torch.dtype, width: int, folder: Path | None, key: Callable[[], str]
    ):
        self.kept: dict[int, Tensor] = {}
        self.file: np.memmap | None = None
        self.dtype, self.width = dtype, width
        row = width * torch.empty(0, dtype=dtype).element_size()
        if sum(lengths) * row <= MEMORY_BYTES:
            return
        if folder is None:
            raise CannotCache("the states do not fit into memory (cache_frozen_layers: true keeps them in a file)")
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / key()
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.file = _mapped(name.with_suffix(".states"), (int(self.starts[-1]), row))
        self.done = _mapped(name.with_suffix(".done"), (len(lengths),))

    def has(self, i: int) -> bool:
        return bool(self.done[i]) if self.file is not None else i in self.kept

    def put(self, i: int, states: Tensor) -> None:
        states = states.detach().cpu().contiguous()
        if self.file is None:
            self.kept[i] = states
            return
        self.file[self.starts[i] : self.starts[i + 1]] = states.view(torch.uint8).numpy()
        self.done[i] = 1

    def get(self, i: int) -> Tensor:
        if self.file is None:
            return self.kept[i]
        raw = np.array(self.file[self.starts[i] : self.starts[i + 1]])
        return torch.from_numpy(raw).view(self.dtype)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A file of bytes, made full of zeros if it is not there."""
    if not path.exists():
        part = path.with_name(f".part-{os.getpid()}-{path.name}")
        with part.open("wb") as out:
            out.truncate(int(np.prod(shape)))
        os.replace(part, path)
    return np.memmap(path, np.uint8, "r+", shape=shape)
