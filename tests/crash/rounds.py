"""Rounds of kill -9 under load: ``python -m tests.crash.rounds --rounds 20``.

Every round ends the server at a moment of chance while clients go on. The log is then read
before anybody has mended it, a new server recovers it, and answered calls are repeated. The
last line is the verdict; the exit status is 1 unless every promise was kept.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from server.client import BanditClient
from tests.crash.backends import BACKENDS, SERVE, Backend, Served
from tests.crash.checking import Checked, check, retry
from tests.crash.crowd import CLIENTS, SPEC, Crowd, Journal, Lines


@dataclass
class Verdict:
    """What all rounds found together."""

    rounds: int
    last: Checked
    lost: list[str]
    duplicated: list[str]
    problems: list[str]

    @property
    def is_kept(self) -> bool:
        """Whether every promise was kept in every round."""
        return not (self.lost or self.duplicated or self.problems)

    def __str__(self) -> str:
        fold = "snapshot == fold" if not self.problems else f"PROBLEMS: {self.problems[0]}"
        return (
            f"{self.rounds} rounds, {self.last.acknowledged} acknowledged, "
            f"{len(self.lost)} lost, {len(self.duplicated)} duplicated, {fold}"
        )


def begin(address: str) -> None:
    """Create the experiment that the crowd asks, and start it."""
    with BanditClient(address, timeout=60) as client:
        client.create_experiment(SPEC, request_id="create")
        client.start_experiment(SPEC.name, override="a test of crashes")


def read(journals: Sequence[Journal]) -> list[Lines]:
    """Give what every journal holds now."""
    return [journal.now() for journal in journals]


def run(
    backend: Backend,
    folder: Path,
    *,
    rounds: int,
    calls: int = 300,
    module: Sequence[str] = SERVE,
    tell: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Kill a server under load, again and again.

    Parameters
    ----------
    calls
        Acknowledgements between two kills, give or take a half.
    module
        What to run as the server.
    tell
        Told of every round.
    """
    moments = random.Random(4)  # noqa: S311
    journals = [Journal(folder / f"journal-{k}") for k in range(CLIENTS)]
    lost, duplicated, problems = set[str](), set[str](), list[str]()
    server = Served(backend, folder / "server.log", module=module)
    begin(server.address)
    crowd = Crowd(server.address, journals, patience=120)
    try:
        for number in range(1, rounds + 1):
            crowd.await_more(moments.randint(calls // 2, calls * 3 // 2))
            server.kill()
            with backend.still() as url:
                found = check(url, backend.secret, read(journals), again=number == rounds)
            server = Served(backend, folder / "server.log", port=server.port, module=module)
            changed = retry(server.address, read(journals))
            lost |= {*found.lost, *changed}
            duplicated |= set(found.duplicated)
            problems += found.problems
            tell(
                f"round {number} of {rounds}: {found.acknowledged} acknowledged, "
                f"{len(found.lost)} lost, {len(found.duplicated)} duplicated, "
                f"{len(changed)} answered otherwise, {found.snapshots} snapshots, "
                f"{len(found.problems)} problems"
            )
    finally:
        crowd.leave()
        status = server.stop()
        for journal in journals:
            journal.close()
    problems += [f"a client failed: {error}" for error in crowd.errors]
    problems += [f"the last server ended with {status}"] if status else []
    with backend.still() as url:
        last = check(url, backend.secret, read(journals))
    lost |= set(last.lost)
    duplicated |= set(last.duplicated)
    return Verdict(rounds, last, sorted(lost), sorted(duplicated), [*problems, *last.problems])


def main() -> None:
    """Run as told and print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="sqlite")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=600, help="acknowledged between two kills")
    told = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"killing a server on {told.backend} {told.rounds} times under load")
    with tempfile.TemporaryDirectory() as name:
        backend = BACKENDS[told.backend](Path(name))
        try:
            verdict = run(
                backend, Path(name), rounds=told.rounds, calls=told.calls, tell=console.print
            )
        finally:
            backend.close()
    console.print(str(verdict))
    sys.exit(not verdict.is_kept)


if __name__ == "__main__":
    main()
