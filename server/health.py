"""Whether this process serves and whether it lives, found by looking and not by hoping.

Ready means: started, not draining, every thread runs, the last write worked, a write was proved
a moment ago, the database file is still there. Alive means: every thread runs. A process that is
alive and not ready may mend by itself; one that is not alive must be started again.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from bandit.errors import BanditError
from server import catalogue
from server.clock import Clock
from server.database import Database
from server.writer import Call, Writer

log = logging.getLogger(__name__)

PROVE_EVERY = 5.0
"""Seconds without a write after which one is made."""
PATIENCE = 5.0
"""Seconds that this write may take."""
AMPLE = 65_536
"""Characters that must fit in before writes that failed are said to work again."""


class Part(Protocol):
    """What a server can not do without; ``has_died``: its thread ended without being told to."""

    has_died: bool


class State(NamedTuple):
    """What was found: reasons not to send requests here, and reasons to start again."""

    unready: tuple[str, ...]
    dead: tuple[str, ...]

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome."""
        return not self.unready

    @property
    def is_alive(self) -> bool:
        """Whether the process can still do its work."""
        return not self.dead


class Health:
    """Looks at a server every moment, and says when what it sees has changed.

    Parameters
    ----------
    database, writer
        What is looked at.
    parts
        Threads that must run, by name.
    clock
        Stamps the writes that prove the database.
    every
        Seconds between two looks.
    """

    def __init__(
        self,
        database: Database,
        writer: Writer,
        parts: Mapping[str, Part],
        clock: Clock,
        *,
        every: float = 0.5,
    ) -> None:
        self.on_change: Callable[[State], None] = lambda _: None
        self._database = database
        self._writer = writer
        self._parts = parts
        self._clock = clock
        self._every = every
        self._phase = "starting"
        self._writes = True
        self._probe: _Probe | None = None
        self._proved_at = time.monotonic()
        self._last: State | None = None
        self._door = threading.Lock()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def open(self) -> None:
        """Say that the start is over: kernels warm, snapshots loaded, a write proved."""
        self._phase = ""
        self._proved_at = time.monotonic()
        self.look()
        self._thread.start()

    def drain(self) -> None:
        """Say that the stop has begun: not ready any more, and still alive."""
        self._phase = "draining"
        self.look()

    def close(self) -> None:
        """End looking."""
        self._phase = "stopped"
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def tell_writes(self, is_healthy: bool) -> None:  # noqa: FBT001
        """Take the writer's word that transactions fail, or work again."""
        log.warning("writes %s", "work again" if is_healthy else "fail")
        self._writes = is_healthy
        self.look()

    def state(self) -> State:
        """Look now."""
        if self._phase == "starting":
            return State(("starting",), ())
        if self._phase == "stopped":
            return State(("stopped",), ())
        dead = [f"the {name}'s thread died" for name, part in self._parts.items() if part.has_died]
        unready = [self._phase] if self._phase else []
        if not self._writes:
            unready.append("writes fail")
        if self._probe is not None and self._probe.is_overdue:
            unready.append(f"a write takes longer than {PATIENCE:.0f} s")
        try:
            self._database.check_file()
        except BanditError as error:
            unready.append(error.message)
        return State((*unready, *dead), tuple(dead))

    def look(self) -> State:
        """Look now, and tell whoever wants to know if it changed."""
        with self._door:
            found = self.state()
            before, self._last = self._last, found
            if before != found:
                self._say(before, found)
                self.on_change(found)
        return found

    @staticmethod
    def _say(before: State | None, found: State) -> None:
        if found.is_ready:
            log.info("ready")
        elif before is not None or found.unready != ("starting",):
            level = logging.INFO if found.unready == ("draining",) else logging.ERROR
            log.log(level, "not ready: %s", "; ".join(found.unready))

    def _run(self) -> None:
        while not self._wake.wait(self._every):
            try:
                self.prove()
                self.look()
            except Exception:
                log.exception("health could not be looked at")

    def prove(self) -> None:
        """Write a fact if nothing else was written lately, or if writes fail."""
        now = time.monotonic()
        if self._probe is not None:
            if not self._probe.is_done:
                return
            if self._probe.error is None:
                self._proved_at = now
            self._probe = None
        idle = now - max(self._proved_at, self._writer.proved_at)
        if idle < PROVE_EVERY and self._writes:
            return
        padding = "" if self._writes else "." * AMPLE  # a full disk may still take a few bytes
        probe = _Probe(f"{self._clock()}{padding}")
        try:
            self._writer.submit(probe)
        except BanditError:
            return  # it has stopped, and the look says so
        self._probe = probe


class _Probe(Call[None]):
    """A write that proves that writes work."""

    proves = True

    __slots__ = ("began", "is_done")

    def __init__(self, value: str) -> None:
        super().__init__(lambda connection: catalogue.set_fact(connection, "last_probe", value))
        self.began = time.monotonic()
        self.is_done = False
        self.on_done = self._done

    def _done(self) -> None:
        self.is_done = True

    @property
    def is_overdue(self) -> bool:
        """Whether it takes longer than it may."""
        return not self.is_done and time.monotonic() - self.began > PATIENCE
