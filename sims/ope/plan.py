"""How to evaluate: which estimators and models, and when an estimate is withheld."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bandit.errors import InvalidInputError
from bandit.groups import Groups
from bandit.kernels.compiling import Floats
from sims.ope.balancing import Balancer, Versions
from sims.ope.diagnostics import Limits
from sims.ope.estimators import ESTIMATORS
from sims.ope.intervals import check_bounds, check_level
from sims.ope.models import RewardModel
from sims.ope.targets import Target

Model = RewardModel | Floats
"""A model to fit, or predictions (n, k) made without the row they are for."""

PLAIN = tuple(name for name in ESTIMATORS if name != "balanced")
"""All estimators but ``balanced``, which needs to be told how to balance."""

INTERVALS = ("student", "bca", "stabilised", "betting")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """How to evaluate; ``evaluate`` takes these by name.

    Parameters
    ----------
    estimators
        Which, by name; all but ``balanced`` if there is nothing to balance by, else all.
    models
        Reward models by name; with one, estimates are named without it.
    balancing
        How ``balanced`` finds its weights: the policies of the log's versions (``Versions``), or
        a classifier (``Balancer``).
    settings
        Of estimators by name; what is not named is chosen from the log.
    seed
        Names folds, samples and replicates.
    level
        Of the intervals.
    replicates
        Of the bootstrap, a multiple of 4; 0: only Student's intervals.
    limits
        When an estimate is withheld.
    groups
        Declared shares of the groups, compared with the log's; None: not compared.
    logging
        The policy that logged, if all its propensities are known, to check those of the log.
    logging_is_adaptive
        Whether the policy that logged learned from the log's own rows; None: found from versions
        and propensities, see ``collection``.
    intervals
        Which, of ``student``, ``bca``, ``stabilised`` and ``betting``; None: those that hold for
        the way the log came about.
    bounds
        Declared range of rewards, for ``betting``.
    largest_weight
        No weight can be larger, known beforehand from the floor of the policy that logged: makes
        ``betting`` narrower.
    progress
        Told what is being done, and after how many rows.

    Raises
    ------
    InvalidInputError
        For an unknown estimator, or a number out of range.
    """

    estimators: Sequence[str] | None = None
    models: Mapping[str, Model] | None = None
    balancing: Versions | Balancer | None = None
    settings: Mapping[str, float] | None = None
    seed: int = 0
    level: float = 0.95
    replicates: int = 1000
    limits: Limits = field(default_factory=Limits)
    groups: Groups | None = None
    logging: Target | None = None
    logging_is_adaptive: bool | None = None
    intervals: Sequence[str] | None = None
    bounds: tuple[float, float] | None = None
    largest_weight: float | None = None
    progress: Callable[[str, int], None] | None = None

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in ESTIMATORS:
                raise InvalidInputError(
                    f"{name!r} is not known; there are {', '.join(ESTIMATORS)}",
                    field="estimators",
                )
        if "balanced" in self.names and self.balancing is None:
            raise InvalidInputError(
                "'balanced' needs the policies of the log's versions, or a balancer",
                field="balancing",
            )
        for name in self.settings or {}:
            if name not in ESTIMATORS or not ESTIMATORS[name].setting:
                raise InvalidInputError("has nothing to set", field=f"settings.{name}")
        if not 0 <= self.seed < 2**64:
            raise InvalidInputError(f"must be in [0, 2**64), got {self.seed}", field="seed")
        check_level(self.level)
        self._check_intervals()

    def _check_intervals(self) -> None:
        for name in self.intervals or ():
            if name not in INTERVALS:
                raise InvalidInputError(
                    f"{name!r} is not known; there are {', '.join(INTERVALS)}", field="intervals"
                )
        if self.bounds is not None:
            check_bounds(self.bounds)
        elif "betting" in (self.intervals or ()):
            raise InvalidInputError("'betting' needs the range of rewards", field="bounds")

    @property
    def names(self) -> tuple[str, ...]:
        """The estimators."""
        if self.estimators is not None:
            return tuple(self.estimators)
        return PLAIN if self.balancing is None else tuple(ESTIMATORS)

    @property
    def used_models(self) -> Mapping[str, Model]:
        """The models, none if no estimator needs one."""
        if not any(ESTIMATORS[name].needs_model for name in self.names):
            return {}
        return {"auto": RewardModel()} if self.models is None else self.models

    def tell(self, stage: str, rows: int) -> None:
        """Tell how far it is."""
        if self.progress is not None:
            self.progress(stage, rows)
