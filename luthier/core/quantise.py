"""Weights as a quantised base holds them: rounded to a few levels and read back, on any device, without kernels.

    nf4   W = s_b c[k]     s_b = max |W| over a block of 64 numbers, c: 16 levels, k: the nearest to W / s_b
    int8  W = s_i k / 127  s_i = max |W| over row i (one output), k: the nearest whole number to 127 W / s_i

Paper:      nf4: Dettmers et al., 2023, "QLoRA", arXiv:2305.14314, section 3 and appendix E; int8: Dettmers et al., 2022,
            "LLM.int8()", arXiv:2208.07339, section 2.
Departures: scales stay in float32 (no double quantisation); int8 keeps no outlier columns in 16 bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.method import LuthierError

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64
KINDS = ("nf4", "int8")


def quantised(weight: Tensor, kind: str) -> Tensor:
    """A matrix (outputs, inputs) rounded as `kind` and read back, in its own dtype."""
    wide = weight.float()
    if kind == "int8":
        scale = wide.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return ((wide / scale * 127).round() * scale / 127).to(weight.dtype)
    if kind == "nf4":
        flat = wide.flatten()
        blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        levels = torch.tensor(NF4, device=weight.device)
        index = torch.bucketize((blocks / scale).contiguous(), (levels[1:] + levels[:-1]) / 2)
        return (levels[index] * scale).flatten()[: flat.numel()].view_as(weight).to(weight.dtype)
    raise LuthierError(f"a base is quantised as one of {', '.join(KINDS)}, not '{kind}'")


def bits(kind: str, inputs: int) -> float:
    """Stored bits a number of a matrix with `inputs` columns, scales (32 bits each) included."""
    return 4 + 32 / BLOCK if kind == "nf4" else 8 + 32 / inputs
