"""What an edit of checkpoints costs against reading every one of them once and writing one: time, and peak memory.

    python -m benchmarks.edits --folder DIR [--threads 1] [--small]

Two random bfloat16 checkpoints of `steps` layers of a Llama of width 2048 (2 GB at the usual size) in shards of at most 500 MB.
`copy` reads the bytes of both into one buffer of 1 MB and writes as many as one has; `copy_one` reads and writes one, for
edits of one checkpoint. Each edit runs through `luthier.verbs.edit`, without the final check, which loads a model whole.
Everything written is flushed to the disk. Every contender is a fresh process, in turns (copy, merge, copy, ties, ...), after
what both import is imported; `ratio` is seconds on the wall over those of the copy before it, the median of three turns.
`tensors` is peak memory beyond that of the copy, in largest tensors.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import _contender as contender

EDITS: dict[str, dict[str, Any]] = {
    "merge": {}, "task_arithmetic": {"lambda": 0.5}, "slerp": {}, "dare": {}, "ties": {}, "magnitude": {}, "n_m": {},
}  # fmt: skip
ALONE = ("copy_one", "magnitude", "n_m")
"""What takes one checkpoint."""
BLOCK, SHARD, TURNS = 2**20, 500_000_000, 3


def make(folder: Path, layers: int, width: int, seed: int) -> int:
    """A random checkpoint; bytes of its largest tensor."""
    import json

    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=32_000, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
        num_attention_heads=16, max_position_embeddings=1024, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in LlamaForCausalLM(settings).state_dict().items()}
    settings.save_pretrained(folder)
    torch.manual_seed(seed)
    shards: list[list[str]] = [[]]
    room = SHARD
    for name, shape in shapes.items():
        room -= 2 * shape.numel()
        if room < 0 and shards[-1]:
            shards.append([])
            room = SHARD - 2 * shape.numel()
        shards[-1].append(name)
    where = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file({n: (0.02 * torch.randn(shapes[n])).bfloat16() for n in names}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return max(2 * s.numel() for s in shapes.values())


def copy(folders: list[Path], out: Path) -> None:
    """Read all, write what the first holds."""
    out.mkdir()
    buffer = memoryview(bytearray(BLOCK))
    for i, folder in enumerate(folders):
        for file in sorted(folder.glob("*.safetensors")):
            with (
                file.open("rb", buffering=0) as source,
                (out / file.name if i == 0 else Path(os.devnull)).open("wb", buffering=0) as sink,
            ):
                while size := source.readinto(buffer):
                    if i == 0:
                        sink.write(buffer[:size])
                sink.flush()
                if i == 0:
                    os.fsync(sink.fileno())


def one(told: contender.Asked) -> None:
    """One contender on checkpoints that are there."""
    import shutil

    from transformers import AutoConfig, AutoTokenizer, PreTrainedModel  # noqa: F401  what both import is not timed

    from luthier.verbs.edit import edit

    folder = Path(told.folder)
    folders, out = [folder / name for name in ("a" if told.contender in ALONE else "ab")], folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    recipe = {"edit": {"name": told.contender, **EDITS.get(told.contender, {})}, "models": [str(f) for f in folders]}
    clock = contender.Clock()
    clock.start()
    if told.contender in ("copy", "copy_one"):
        copy(folders, out)
    else:
        edit({**recipe, "output_dir": str(out), "check": False})
    clock.stop()
    contender.tell(told, clock, 1)


def main() -> None:
    told = contender.asked()
    if told.contender not in ("luthier", "both"):
        return one(told)
    folder, width = Path(told.folder), 256 if told.small else 2048
    largest = max(make(folder / name, told.steps, width, seed) for seed, name in enumerate("ab"))
    rows = []
    for name in EDITS:
        turns = [[_process(told, c) for c in ("copy_one" if name in ALONE else "copy", name)] for _ in range(TURNS)]
        ratios = [ours["seconds"] / plain["seconds"] for plain, ours in turns]
        beyond = [(ours["peak_mb"] - plain["peak_mb"]) * 2**20 / largest for plain, ours in turns]
        rows.append(
            {
                "edit": name,
                "ratio": [statistics.median(ratios), min(ratios), max(ratios)],
                "seconds": statistics.median(ours["seconds"] for _, ours in turns),
                "cpu_seconds": statistics.median(ours["cpu_seconds"] for _, ours in turns),
                "copy_seconds": statistics.median(plain["seconds"] for plain, _ in turns),
                "copy_cpu_seconds": statistics.median(plain["cpu_seconds"] for plain, _ in turns),
                "peak_mb": statistics.median(ours["peak_mb"] for _, ours in turns),
                "tensors": statistics.median(beyond),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    size = sum(f.stat().st_size for f in (folder / "a").glob("*.safetensors"))
    contender.say(
        {"contender": "edits", "checkpoint_mb": size / 2**20, "largest_mb": largest / 2**20, "load": os.getloadavg()[0],
         "rows": rows, "made": time.strftime("%Y-%m-%d")}
    )  # fmt: skip
    return None


def _process(told: contender.Asked, name: str) -> dict[str, Any]:
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.edits", name, "--folder", told.folder]
    done = subprocess.run([*words, "--threads", str(told.threads)], capture_output=True, text=True, check=False)
    return contender.heard(done, name)


if __name__ == "__main__":
    main()
