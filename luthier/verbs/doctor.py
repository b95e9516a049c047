"""`luthier doctor`: what this machine and installation can do."""

from __future__ import annotations

import importlib.util
import shutil


def doctor() -> str:
    """Versions, devices, extras and embedded models, one line each."""
    import torch

    from luthier import sandbox
    from luthier.core import catalog, runs
    from luthier.core.sources import cache_folder

    told = runs.versions()
    lines = ["  ".join(f"{k} {v}" for k, v in told.items())]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            lines.append(
                f"GPU {i}: {torch.cuda.get_device_name(i)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
            )
    else:
        lines.append(
            f"no GPU; CPU with {torch.get_num_threads()} threads (torch_threads: 1 is fastest for tiny models)"
        )
    space = shutil.disk_usage(".").free / 2**30
    lines.append(f"disk: {space:.0f} GiB free here; cache: {cache_folder()}")
    for extra, module in (("eval", "lm_eval"), ("constrained", "outlines_core"), ("bench", "trl")):
        found = importlib.util.find_spec(module) is not None
        lines.append(f"extra '{extra}': {'installed' if found else f'not installed (pip install luthier[{extra}])'}")
    lines.append(f"embedded models: {', '.join(sandbox.model_names())}")
    rows = catalog.listing()
    lines.append(f"{len(rows)} methods on {len({r['axis'] for r in rows})} axes")
    return "\n".join(lines)
