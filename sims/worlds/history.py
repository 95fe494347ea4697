"""What one policy has sent to every customer, where that changes what they do next."""

import numpy as np

from bandit.kernels.compiling import Bools, Floats, Ints
from sims.worlds.world import World

_DAY = 86_400.0


class History:
    """The state of one policy's run: messages that still tire, and who has unsubscribed.

    Parameters
    ----------
    world
        Of the course. A memoryless one needs no state, and ``add`` keeps none.
    """

    def __init__(self, world: World) -> None:
        count = 0 if world.is_memoryless else world.traffic.customers or 0
        half_life = world.fatigue.half_life if world.fatigue is not None else 1.0
        self._half_life = half_life * _DAY
        self._load = np.zeros(count)
        self._since = np.zeros(count)
        self._gone = np.zeros(count, dtype=np.bool_)

    def load(self, customers: Ints, times: Floats) -> Floats:
        """Give how much messages weigh at some times, 1 for one just sent; shape (n,)."""
        if not len(self._load):
            return np.zeros(len(customers))
        passed = (times - self._since[customers]) / self._half_life
        return np.asarray(self._load[customers] * np.exp2(-passed))

    def unsubscribed(self, customers: Ints) -> Bools:
        """Mark who has unsubscribed, shape (n,)."""
        if not len(self._gone):
            return np.zeros(len(customers), dtype=np.bool_)
        return self._gone[customers]

    def add(self, customers: Ints, times: Floats, sent: Bools, unsubscribed: Bools) -> None:
        """Add what was sent to customers who are all different, and who left.

        Parameters
        ----------
        customers, times : (n,)
            As in ``Arrivals``.
        sent : (n,)
            Whether an action was chosen.
        unsubscribed : (n,)
            As in ``Responses``.
        """
        if not len(self._load):
            return
        who, when = customers[sent], times[sent]
        self._load[who] = self.load(who, when) + 1.0
        self._since[who] = when
        self._gone[customers[unsubscribed]] = True
