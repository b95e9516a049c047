"""`python -m luthier.sandbox [WORLD]`: the worlds and their shares, or the tasks of one world with an example each."""

import sys

from luthier.sandbox import model_names, model_path, world, worlds
from luthier.sandbox.world import gold


def main(arguments: list[str]) -> None:
    """Print the overview, or one world."""
    if not arguments:
        for name, found in worlds().items():
            print(f"{name:13} {found.share:4.0%}  {len(found.catalogue):3} tasks  {found.title}")
        print("models:", ", ".join(f"{n} ({model_path(n) / 'card.json'})" for n in model_names()))
        return
    found = world(arguments[0])
    print(f"{found.title} ({found.share:.0%} of the pretraining documents)")
    for task, line in found.tasks().items():
        row = found.rows(task, n=1)[0]
        print(f"\n{task}: {line}\n  {row.get('prompt', '')!r} -> {gold(row)!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
