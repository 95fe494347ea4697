"""Jobs of the tests of backends: a module that workers import in no time."""

import os
import signal
import time

from threadpoolctl import threadpool_info

from bandit.errors import InvalidInputError


def same(job: int) -> int:
    return job


def fails(job: int) -> int:
    raise InvalidInputError("is bad", field=f"jobs[{job}]")


def dies_at_three(job: int) -> int:
    if job == 3:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def threads(_: int) -> list[int]:
    """Give the threads of every pool of linear algebra, and the process."""
    import numpy as np

    np.linalg.solve(np.eye(2), np.ones(2))
    return [*(pool["num_threads"] for pool in threadpool_info()), os.getpid()]
