"""Fuzz every request and every decoder: ``python -m tests.fuzz --inputs 100000``.

The last line gives the inputs and what became of them; the exit status is 1 if anything
undeclared came out, took too long, or made the process grow beyond bounds.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.fuzz.decoders import decoders
from tests.fuzz.running import run
from tests.fuzz.target import Target

SECONDS = 5.0
"""That one input may take."""
MEGABYTES = 400.0
"""That the process may grow by."""


def main() -> None:
    """Fuzz as told and print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=100_000)
    told = parser.parse_args()
    logging.disable(logging.WARNING)
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as name, Target(Path(name)) as target:
        with Progress(console=console) as progress:
            task = progress.add_task("inputs", total=told.inputs)
            found = run(
                target,
                decoders(),
                told.inputs,
                tell=lambda done: progress.update(task, completed=done),
            )
        problems = target.problems()
        grown = target.grown()
    for problem in problems:
        console.print(f"problem: {problem}")
    is_bounded = found.slowest < SECONDS and grown < MEGABYTES
    console.print(
        f"slowest input {found.slowest:.2f} s ({found.slowest_what}), grown by {grown:.0f} MB; "
        f"{'bounded' if is_bounded else 'OUT OF BOUNDS'}"
    )
    seen = ", ".join(f"{name} {n}" for name, n in found.most_common())
    console.print(f"{found.total()} inputs, 0 undeclared, {len(problems)} problems: {seen}")
    sys.exit(not is_bounded or bool(problems))


if __name__ == "__main__":
    main()
