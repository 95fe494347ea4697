"""A power cut: what was acknowledged was synced, whatever the disk forgets of the rest.

The server of production runs on a disk that forgets (``power``). At moments of chance the
journals are read, then the disk is cut off; every image of it that may be found must open, and
hold what was acknowledged. The same must fail where SQLite is told to sync less.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import database
from server.app import Server
from server.database import Database
from server.settings import Settings
from tests.crash.checking import Checked, check
from tests.crash.crowd import CLIENTS, Crowd, Journal, Lines
from tests.crash.power import Disk, Image, forgetful
from tests.crash.rounds import begin, read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.mkdir()
    return made


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[list[Journal]]:
    made = [Journal(tmp_path / f"journal-{k}") for k in range(CLIENTS)]
    yield made
    for journal in made:
        journal.close()


class Cuts:
    """Takes the disk away at moments of chance, amid what SQLite is writing.

    Parameters
    ----------
    chance
        Of a cut at each write.
    most
        Cuts in all.
    """

    def __init__(self, disk: Disk, journals: list[Journal], chance: float, most: int) -> None:
        self._disk, self._journals = disk, journals
        self._random = random.Random(3)  # noqa: S311
        self._chance, self._most = chance, most
        self.found: list[tuple[list[Lines], Image]] = []
        disk.on_change = self.look

    def look(self) -> None:
        if len(self.found) < self._most and self._random.random() < self._chance:
            self.cut()

    def cut(self) -> None:
        """Keep what was acknowledged, and then the disk: in this order."""
        self.found.append((read(self._journals), self._disk.cut()))


def serve(
    folder: Path, journals: list[Journal], calls: int, chance: float, most: int
) -> list[tuple[list[Lines], Image]]:
    """Serve a crowd; give what was acknowledged by each of some moments, and the disk then."""
    with forgetful(folder) as disk:
        server = Server(Settings(database=f"sqlite:///{folder / 'bandit.db'}", port=0))
        server.start()
        address = f"127.0.0.1:{server.port}"
        begin(address)
        cuts = Cuts(disk, journals, chance, most)
        crowd = Crowd(address, journals, patience=60)
        try:
            crowd.await_more(calls)
            cuts.cut()
        finally:
            crowd.leave()
            server.stop()
    assert crowd.errors == []
    return cuts.found


def after(image: Image, lines: list[Lines], folder: Path, chance: random.Random | None) -> Checked:
    """Start on what a power cut left, as the next server does, and check it."""
    secret = folder / "bandit.db.secret"
    left = folder / "left"
    left.mkdir()
    url = f"sqlite:///{left / 'bandit.db'}"
    image.write(left, chance)
    try:
        Database(url).close()
        return check(url, secret, lines, again=False)
    finally:
        for path in left.iterdir():
            path.unlink()
        left.rmdir()


def test_nothing_acknowledged_is_lost(folder: Path, journals: list[Journal]):
    chance = random.Random(8)  # noqa: S311
    cuts = serve(folder, journals, 600, 0.005, 12)
    for lines, image in cuts:
        for how in (None, chance, chance):
            found = after(image, lines, folder, how)
            assert found.is_kept, found
    assert any(changes for _, image in cuts for _, changes in image.files.values())
    assert found.acknowledged > 500
    assert found.snapshots > 0


@pytest.mark.parametrize("level", [1, 0], ids=["NORMAL", "OFF"])
def test_syncing_less_is_found(
    folder: Path, journals: list[Journal], monkeypatch: pytest.MonkeyPatch, level: int
):
    """The same check fails where a commit does not wait for the disk."""
    monkeypatch.setitem(database._DURABLE, "synchronous", level)
    [(lines, image)] = serve(folder, journals, 60, 0.0, 0)
    found = after(image, lines, folder, None)
    assert found.lost


def test_the_disk_keeps_what_was_synced_and_no_more(tmp_path: Path):
    disk = Disk(tmp_path)
    name = str(tmp_path / "a")
    disk.opened(name)
    disk.change(name, 0, b"old " * 4)
    disk.sync(name)
    disk.change(name, 4, b"new!")
    disk.change(name, 12, None)
    image = disk.cut()
    image.write(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"old " * 4
    seen = set()
    for seed in range(50):
        image.write(tmp_path, random.Random(seed))  # noqa: S311
        seen.add((tmp_path / "a").read_bytes())
    assert seen >= {b"old " * 4, b"old new!old ", b"old " * 3, b"old new!old old "}
