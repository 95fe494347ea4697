"""Where work is done: in this process, in several, on a cluster. joblib is the only interface.

A job is a pure function of its argument, so its result is the same wherever it is computed. The
thread pools of linear algebra are held to one thread in every job, on every backend: several
processes would fight for the cores, and sums in another order would give other bits.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import BrokenProcessPool
from threadpoolctl import threadpool_limits

from bandit.errors import InvalidInputError, UnavailableError

KINDS = ("here", "loky", "dask", "ray")
MAX_WORKERS = 1_024
CONNECT_SECONDS = 30.0
_NEEDED = {"dask": ("dask", "distributed"), "ray": ("ray",)}
_INSTALL = {"dask": "pip install 'banditctl[dask]'", "ray": "pip install 'banditctl[ray]'"}
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where jobs are done.

    Parameters
    ----------
    kind
        ``here``: this process. ``loky``: processes of this machine. ``dask``: a Dask cluster,
        made on this machine where no scheduler is named. ``ray``: a Ray cluster.
    workers
        Processes; a running cluster has as many as it has.
    scheduler
        Address of a running Dask scheduler or Ray cluster; empty: none.

    Raises
    ------
    InvalidInputError
        If there is no such backend, it is not installed, or a value does not go with it.
    """

    kind: str = "here"
    workers: int = 1
    scheduler: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInputError(f"{self.kind!r} is none of {', '.join(KINDS)}", field="backend")
        if isinstance(self.workers, bool) or not 1 <= self.workers <= MAX_WORKERS:
            raise InvalidInputError(
                f"must be a whole number in [1, {MAX_WORKERS:,}], got {self.workers}",
                field="workers",
            )
        if self.kind == "here" and self.workers > 1:
            raise InvalidInputError("here is one process; take loky for more", field="backend")
        if self.scheduler and self.kind not in ("dask", "ray"):
            raise InvalidInputError("goes with the backends dask and ray", field="scheduler")
        missing = [name for name in _NEEDED.get(self.kind, ()) if find_spec(name) is None]
        if missing:
            raise InvalidInputError(
                f"{self.kind} needs {' and '.join(missing)}, not installed here: "
                f"{_INSTALL[self.kind]}; or take loky",
                field="backend",
            )

    @classmethod
    def of(
        cls, workers: int | None = None, kind: str | None = None, scheduler: str = ""
    ) -> "Backend":
        """Fill in what is not asked: this process, or as many processes as there are cores."""
        if kind is None:
            kind = "dask" if scheduler else "loky" if (workers or 1) > 1 else "here"
        if workers is None:
            workers = 1 if kind == "here" else min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        return cls(kind=kind, workers=workers, scheduler=scheduler)

    def run(self, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[tuple[int, R]]:
        """Give every job's place and result, as they finish.

        Parameters
        ----------
        function
            Pure, and importable in a worker.

        Raises
        ------
        UnavailableError
            If a worker dies or can not be reached; what came before is right.
        """
        if self.kind == "here":
            for place, job in enumerate(jobs):
                yield _do(function, place, job)
            return
        with ExitStack() as stack:
            with _told(self):
                pool = stack.enter_context(_POOLS[self.kind](self))
                found = pool(delayed(_do)(function, place, job) for place, job in enumerate(jobs))
                stack.callback(_stopped, found)
            while True:
                with _told(self):
                    one = next(found, None)
                if one is None:
                    return
                yield one


def _do(function: Callable[[J], R], place: int, job: J) -> tuple[int, R]:
    with threadpool_limits(1):
        return place, function(job)


def _stopped(found: Iterator[object]) -> None:
    """End what is still running, where not all results were taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there were some left is why we are here
        found.close()  # type: ignore[attr-defined]


@contextmanager
def _told(how: Backend) -> Iterator[None]:
    """Turn what the machinery says of its workers into one sentence."""
    try:
        yield
    except BrokenProcessPool as error:
        raise UnavailableError(
            "a worker process died, often because memory ran out or something killed it"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith(("distributed", "ray")) and not (
            how.scheduler and isinstance(error, OSError | ImportError)
        ):
            raise
        raise UnavailableError(
            f"{how.kind} gave up: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error


@contextmanager
def _loky(how: Backend) -> Iterator[Any]:
    with parallel_config("loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=how.workers, **_AS_THEY_FINISH)
    yield pool


@contextmanager
def _dask(how: Backend) -> Iterator[Any]:
    import distributed

    with ExitStack() as stack:
        cluster: Any = how.scheduler
        if not cluster:
            cluster = stack.enter_context(
                distributed.LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=how.workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                    env=dict.fromkeys(_ONE_THREAD, "1"),
                )
            )
        client = stack.enter_context(
            distributed.Client(  # type: ignore[no-untyped-call]
                cluster, timeout=CONNECT_SECONDS, set_as_default=False
            )
        )
        with parallel_config("dask", client=client, wait_for_workers_timeout=CONNECT_SECONDS):
            pool = Parallel(n_jobs=-1, **_AS_THEY_FINISH)
        yield pool


@contextmanager
def _ray(how: Backend) -> Iterator[Any]:
    import ray
    from ray.util.joblib import register_ray

    if not ray.is_initialized():
        ray.init(**({"address": how.scheduler} if how.scheduler else {"num_cpus": how.workers}))
    register_ray()
    with parallel_config("ray"):
        pool = Parallel(n_jobs=-1 if how.scheduler else how.workers, batch_size=1)

    def rounds(jobs: Iterator[Any]) -> Iterator[Any]:
        """Give results a round at a time: this backend of joblib gives lists only."""
        size, taken = 2 * pool._effective_n_jobs(), list(jobs)
        for first in range(0, len(taken), size):
            yield from pool(taken[first : first + size])

    yield rounds


_AS_THEY_FINISH: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}
_POOLS = {"loky": _loky, "dask": _dask, "ray": _ray}
