"""A bare PyTorch loop over the tensors whose names end in "bias" gives the same weights after ten steps."""

from __future__ import annotations

from luthier.checks._compare import require
from luthier.checks.oracles._tuners import bare_loop, method
from luthier.checks.tuners import worlds


def oracle_bare_loop() -> None:
    """By names alone; the task head moves as well."""
    tuner = method(__name__)
    for world in worlds(tuner):
        names = {n for n, _ in world.base().named_parameters() if n.endswith("bias") or n.startswith("classifier.")}
        bare_loop(tuner, world, names)


def oracle_count_by_hand() -> None:
    """Outputs of every linear and norm of a BERT layer, summed by hand: 9 D + D_ff a layer, 2 D around the layers, V."""
    tuner = method(__name__)
    world = next(w for w in worlds(tuner) if w.architecture == "bert")
    c = world.base().config
    D = c.hidden_size
    body = c.num_hidden_layers * (4 * D + c.intermediate_size + D + 2 * D)  # q k v o, up, down, two norms
    wanted = body + D + (D + D + c.vocab_size)  # embedding norm; head: dense, norm, decoder
    found = tuner.parameter_count(world.base())
    require(found == wanted, f"{found} biases, {wanted} by hand")
