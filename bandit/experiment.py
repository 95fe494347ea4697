"""The front door: an experiment decides for contexts and learns from outcomes.

Everything here is a function of its arguments: the snapshot that decides is passed in, the
posterior that learns is the caller's. The server and the simulator call these same methods.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Self, TypeVar, cast
from uuid import UUID

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandit import revision, rng
from bandit.actions import Exclusion
from bandit.choosing import Uniform
from bandit.decision import Decision, Group, Reason
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.logistic import LogisticPosterior
from bandit.policy import ActionName
from bandit.posterior import BetaBernoulliPosterior, GaussianPosterior, Outcomes, Posterior
from bandit.question import Chosen, Question, Questions
from bandit.slates import Slate, complete
from bandit.snapshot import Asked, Choices, Snapshot, publish
from bandit.spec import ExperimentSpec

Number = TypeVar("Number", np.int64, np.float64)
_CELLS = 1 << 18
"""Propensities computed at a time, so that the memory of a large batch is bounded."""
_BANDIT, _RANDOM = Group.BANDIT, Group.RANDOM
_POLICY, _RANDOM_GROUP = (
    Reason.POLICY,
    Reason.RANDOM_GROUP,
)  # looked up once: members of an Enum are slow


class Experiment:
    """A specification, ready to decide and learn.

    Parameters
    ----------
    spec
        The decision point.
    secret
        Keys groups and draws; at least 16 bytes. The same secret gives the same decisions.

    Raises
    ------
    InvalidInputError
        If the secret is too short.

    Examples
    --------
    >>> from bandit.spec_file import parse
    >>> spec = parse('''
    ... name = "welcome"
    ... actions = {variants = ["short", "long"], channels = ["email", "push"]}
    ... context = [{name = "age", kind = "number", bounds = [18, 90]}]
    ... outcome = {window = 3600, rewards = [{name = "click"}]}
    ... ''', "toml")
    >>> welcome = Experiment(spec, secret=b"sixteen bytes or more")
    >>> posterior = welcome.prior()
    >>> snapshot = welcome.publish(posterior, version=0)
    >>> one = rng.decision_id(welcome.secret, "welcome", "request-1", at_ms=0)
    >>> decision = welcome.decide(snapshot, {"age": 41}, decision_id=one, customer=b"c1")
    >>> decision.group.name, round(float(decision.propensities.sum()), 9)
    ('BANDIT', 1.0)
    """

    def __init__(self, spec: ExperimentSpec, *, secret: bytes) -> None:
        if len(secret) < 16:
            raise InvalidInputError("needs at least 16 bytes", field="secret")
        self.spec = spec
        self.secret = secret
        self._uniform = Uniform()
        self._model_id = spec.model_id

    @cached_property
    def baseline(self) -> int | None:
        """Index of the baseline action."""
        return self._index(self.spec.baseline)

    @cached_property
    def fallback(self) -> int | None:
        """Index of the fallback action."""
        return self._index(self.spec.fallback)

    def prior(self) -> Posterior:
        """Give the posterior of an empty log."""
        policy = self.spec.policy
        if policy.posterior == "beta_bernoulli":
            prior = (policy.successes, policy.failures)
            return BetaBernoulliPosterior(
                self.spec.actions.size, prior, policy.half_life, pooled=policy.pooled
            )
        if policy.posterior == "logistic":
            return LogisticPosterior(
                self.spec.features, policy.base_rate, policy.half_life, pooled=policy.pooled
            )
        return GaussianPosterior(
            self.spec.features,
            policy.noise,
            policy.half_life,
            pooled=policy.pooled,
            outcome_range=self.spec.outcome.range,
        )

    def publish(self, posterior: Posterior, *, version: int) -> Snapshot:
        """Publish the posterior's belief; a pure function of the posterior and its position."""
        policy = self.spec.policy
        return publish(
            posterior,
            version=version,
            exploration=policy.exploration,
            draws=policy.draws,
            stream=rng.snapshot_stream(self.secret, self.spec.name, posterior.seq),
            model_id=self._model_id,
        )

    def check_snapshot(self, snapshot: Snapshot) -> None:
        """Refuse a snapshot that was published of another experiment, or before levels changed.

        Raises
        ------
        InvalidInputError
            With the path ``snapshot``.
        """
        if snapshot.model_id != self._model_id:
            raise InvalidInputError(
                f"was not published by experiment {self.spec.name!r} with its present levels, "
                "terms and context; publish the posterior again",
                field="snapshot",
            )

    def learn(  # noqa: PLR0913  the front door names its parts
        self,
        posterior: Posterior,
        rows: Floats,
        actions: Sequence[int],
        outcomes: Floats,
        *,
        seq: int,
        times: Floats | None = None,
        replaced: Floats | None = None,
    ) -> None:
        """Fold outcomes into the posterior, in log order.

        Parameters
        ----------
        rows : (n, fields)
            Contexts of the decisions.
        actions : (n,)
        outcomes : (n,)
        seq
            Log position that the posterior reaches.
        times : (n,)
            When the decisions were made, in seconds from any fixed origin; needed where
            ``policy.half_life`` is set, else not looked at.
        replaced : (n,)
            For a correction the outcome learned before that it replaces, else NaN; None: there
            are no corrections.

        Raises
        ------
        InvalidInputError
            If a row does not fit the schema, or a number is not finite; nothing is changed then.

        Notes
        -----
        Values outside a field's bounds are clipped, also where a request is refused for them.
        """
        posterior.fold(self.outcomes(rows, actions, outcomes, times, replaced), seq=seq)

    def outcomes(
        self,
        rows: Floats,
        actions: ArrayLike,
        outcomes: Floats,
        times: ArrayLike | None = None,
        replaced: ArrayLike | None = None,
    ) -> Outcomes:
        """Check what is to be learned, and encode it; see ``learn``."""
        chosen = np.asarray(actions)
        if chosen.size and chosen.dtype.kind not in "iu":
            raise InvalidInputError("need whole numbers", field="actions")
        seconds = () if times is None or self.spec.policy.half_life is None else times
        return Outcomes(
            self._features(rows),
            _vector("actions", chosen, np.int64),
            _vector("outcomes", outcomes, np.float64),
            _vector("times", seconds, np.float64),
            _vector("replaced", () if replaced is None else replaced, np.float64),
        )

    def _features(self, rows: Floats) -> Floats:
        """Encode rows that are not trusted."""
        schema, encoder = self.spec.schema, self.spec.encoder
        try:
            packed = np.ascontiguousarray(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"are no table of numbers: {error}", field="rows") from None
        shaped = packed.ndim == 2 and packed.shape[1] == len(schema.fields)
        if shaped and encoder.takes(packed):
            return encoder.encode(packed)
        try:
            schema.check_rows(packed)
        except InvalidInputError as error:
            raise error.under("rows") from None
        raise InvalidInputError("do not fit the context's schema", field="rows")

    def revise(self, posterior: Posterior, spec: ExperimentSpec) -> tuple[Self, Posterior]:
        """Go on under an edited specification, with levels added or retired.

        Parameters
        ----------
        posterior
            What was learned so far; it is not changed.
        spec
            The edited specification.

        Returns
        -------
        Self, Posterior
            The revised experiment, and what it would have learned from the same log, bit for
            bit. Indices of actions are the same in both. Publish before deciding: a snapshot
            belongs to the experiment that published it.

        Raises
        ------
        InvalidInputError
            If the edit would reset or reinterpret what was learned; see
            ``revision.check_revision``.
        """
        revision.check_revision(self.spec, spec)
        after = type(self)(spec, secret=self.secret)
        models = (self.spec.features, spec.features) if spec.has_weights else (None, None)
        return after, revision.grow(posterior, after.prior(), *models)

    def group(self, customer: bytes) -> Group:
        """Give a customer's traffic group."""
        return self.spec.groups.group(rng.group_point(self.secret, self.spec.name, customer))

    def decide(  # noqa: PLR0913  the front door names its parts
        self,
        snapshot: Snapshot,
        context: Mapping[str, object],
        *,
        decision_id: UUID,
        customer: bytes,
        exclusions: tuple[Exclusion, ...] = (),
        propensities: bool = True,
    ) -> Decision:
        """Decide for one named context; see ``decide_batch``.

        Raises
        ------
        InvalidInputError
            For a context that does not fit the schema, an exclusion of an unknown level, or a
            snapshot of another experiment.
        """
        row = self.spec.schema.row(context)
        question = Question(decision_id, customer, row, exclusions)
        return self.decide_batch(snapshot, [question], propensities=propensities)[0]

    def decide_batch(
        self,
        snapshot: Snapshot,
        questions: Sequence[Question],
        *,
        propensities: bool = True,
        refused: Reason | None = None,
    ) -> list[Decision]:
        """Decide for many contexts; each decision is the one it would be alone, bit for bit.

        Parameters
        ----------
        snapshot
            The belief that decides.
        questions
            What to decide; rows are trusted to fit the schema.
        propensities
            Whether to compute every action's probability; without, ``propensity`` is NaN
            where the policy chose.
        refused
            Why nobody is decided for now, such as ``Reason.PAUSED``: all get the fallback.

        Raises
        ------
        InvalidInputError
            If an exclusion names an unknown level, or the snapshot is of another experiment.

        Notes
        -----
        Customers of the no-contact group are never sent anything, not even a fallback.
        """
        if snapshot.model_id != self._model_id:
            self.check_snapshot(snapshot)
        if not questions:
            return []
        groups = [self.group(q.customer) for q in questions]
        which, masks, any_left = self._eligible([q.exclusions for q in questions])
        decisions: list[Decision | None] = [None] * len(questions)
        bandit: list[int] = []
        random: list[int] = []
        for i, group in enumerate(groups):
            if refused is None and group <= _RANDOM and any_left[which[i]]:
                (bandit if group is _BANDIT else random).append(i)
            else:
                answer = self._declared(group, masks[which[i]], refused)
                decisions[i] = self._certain(snapshot, questions[i], group, *answer)
        for group, members in ((_BANDIT, bandit), (_RANDOM, random)):
            if members:
                policy = self.spec.chooser if group is _BANDIT else self._uniform
                asked = self._asked(questions, members, which, masks)
                choices = policy.choose(snapshot.belief, asked, propensities=propensities)
                self._fill(decisions, snapshot, questions, group, members, choices)
        return cast("list[Decision]", decisions)

    def decide_columns(
        self,
        snapshot: Snapshot,
        questions: Questions,
        *,
        propensities: bool = False,
        refused: Reason | None = None,
    ) -> Chosen:
        """Decide for many contexts without an object for each: ``decide_batch``, bit for bit.

        Parameters
        ----------
        propensities
            Whether to give those of every action, too.
        snapshot, questions, refused
            As in ``decide_batch``.

        Raises
        ------
        InvalidInputError
            If an exclusion names an unknown level.
        """
        n, k = len(questions.ids), self.spec.actions.size
        points = rng.group_points(self.secret, self.spec.name, questions.customers)
        groups = self.spec.groups.members(points)
        places, masks, any_left = self._eligible(questions.exclusions or [()] * n)
        which = np.array(places, dtype=np.int64)
        is_chosen = (groups <= _RANDOM) & np.array(any_left)[which] & (refused is None)
        chosen = Chosen(
            np.full(n, -1, dtype=np.int64),
            np.ones(n),
            groups,
            np.where(groups == _BANDIT, int(_POLICY), int(_RANDOM_GROUP)),
            np.zeros((n, k)) if propensities else None,
        )
        rest = np.flatnonzero(~is_chosen)
        for kind in set(zip(groups[rest].tolist(), which[rest].tolist(), strict=True)):
            same = rest[(groups[rest] == kind[0]) & (which[rest] == kind[1])]
            action, reason = self._declared(Group(kind[0]), masks[kind[1]], refused)
            chosen.reasons[same] = int(reason)
            if action is not None:
                chosen.actions[same] = action
                if chosen.propensities is not None:
                    chosen.propensities[same, action] = 1.0
        step = max(_CELLS // k, 1)
        for group in (_BANDIT, _RANDOM):
            those = np.flatnonzero(is_chosen & (groups == group))
            for start in range(0, len(those), step):
                part = those[start : start + step]
                self._choose(snapshot, questions, group, (part, which[part], masks), chosen)
        return chosen

    def _choose(
        self,
        snapshot: Snapshot,
        questions: Questions,
        group: Group,
        members: tuple[Ints, Ints, Bools],
        chosen: Chosen,
    ) -> None:
        """Choose for some rows of one group: their places, and their masks as in ``Asked``."""
        part, which, masks = members
        streams = rng.decision_streams(self.secret, self.spec.name, questions.ids[part])
        asked = Asked(self.spec.encoder.encode(questions.rows[part]), which, masks, streams)
        policy = self.spec.chooser if group is _BANDIT else self._uniform
        actions, p = policy.choose(snapshot.belief, asked, propensities=True)
        p = cast("Floats", p)
        chosen.actions[part] = actions
        chosen.propensity[part] = p[np.arange(len(part)), actions]
        if chosen.propensities is not None:
            chosen.propensities[part] = p

    def decide_slate(  # noqa: PLR0913  the front door names its parts
        self,
        snapshot: Snapshot,
        context: Mapping[str, object],
        *,
        size: int,
        decision_id: UUID,
        customer: bytes,
        exclusions: tuple[Exclusion, ...] = (),
    ) -> tuple[Decision, Slate]:
        """Decide on several actions in order for one named context; see ``decide_slates``.

        Raises
        ------
        InvalidInputError
            As ``decide`` and ``decide_slates``.
        """
        row = self.spec.schema.row(context)
        question = Question(decision_id, customer, row, exclusions)
        return self.decide_slates(snapshot, [question], size=size)[0]

    def decide_slates(
        self,
        snapshot: Snapshot,
        questions: Sequence[Question],
        *,
        size: int,
        refused: Reason | None = None,
    ) -> list[tuple[Decision, Slate]]:
        """Decide on several actions in order for many contexts.

        Parameters
        ----------
        size
            Places, from 1 to the number of actions. A slate is shorter where the policy gives
            fewer actions a probability, and where an action is declared, not chosen: that
            slate holds the action alone, or nothing where nothing is sent.
        snapshot, questions, refused
            As in ``decide_batch``.

        Returns
        -------
        (n,)
            The decision that ``decide_batch`` makes, which is the first place bit for bit, and
            the slate.

        Raises
        ------
        InvalidInputError
            If the size is out of range, or an exclusion names an unknown level.

        Notes
        -----
        O(size k) a slate beyond its decision. Group ``random`` gets a uniform draw without
        replacement. Source: ``docs/math/policies.md``.
        """
        if size not in range(1, self.spec.actions.size + 1):
            raise InvalidInputError(
                f"must be a whole number in [1, {self.spec.actions.size}], got {size}", field="size"
            )
        decisions = self.decide_batch(snapshot, questions, refused=refused)
        return [(d, self._slate(d, size if d.is_learned_from else 1)) for d in decisions]

    def _slate(self, decision: Decision, size: int) -> Slate:
        stream = rng.words(rng.decision_stream(self.secret, self.spec.name, decision.decision_id))
        return complete(cast("Floats", decision.propensities), decision.action, size, stream)

    def _eligible(
        self, exclusions: Sequence[tuple[Exclusion, ...]]
    ) -> tuple[list[int], Bools, list[bool]]:
        """Give each question's mask as a row of a small table, and which masks leave anything."""
        rows: dict[tuple[Exclusion, ...], int] = {}
        which = [rows.setdefault(e, len(rows)) for e in exclusions]
        if len(rows) == 1 and not exclusions[0]:
            return which, self._own_mask, [True]
        masks = np.array([self.spec.actions.eligible(e) for e in rows], dtype=np.bool_)
        masks = masks.reshape(len(rows), -1)
        return which, masks, [bool(mask.any()) for mask in masks]

    @cached_property
    def _own_mask(self) -> Bools:
        return self.spec.actions.mask.reshape(1, -1).copy()

    def _asked(
        self, questions: Sequence[Question], members: list[int], which: list[int], masks: Bools
    ) -> Asked:
        asking = questions if len(members) == len(questions) else [questions[i] for i in members]
        n, secret, name = len(asking), self.secret, self.spec.name
        rows = np.array([q.row for q in asking], dtype=np.float64)
        streams = b"".join([rng.decision_stream(secret, name, q.decision_id) for q in asking])
        return Asked(
            self.spec.encoder.encode(rows),
            np.array([which[i] for i in members]) if len(masks) > 1 else np.zeros(n, np.int64),
            masks,
            rng.words(streams).reshape(n, 4),
        )

    def _fill(  # noqa: PLR0913
        self,
        decisions: list[Decision | None],
        snapshot: Snapshot,
        questions: Sequence[Question],
        group: Group,
        members: list[int],
        choices: Choices,
    ) -> None:
        p = choices.propensities
        reason = _POLICY if group is _BANDIT else _RANDOM_GROUP
        for place, action in enumerate(choices.actions.tolist()):
            i = members[place]
            decisions[i] = Decision(
                decision_id=questions[i].decision_id,
                action=action,
                propensity=float("nan") if p is None else float(p[place, action]),
                group=group,
                reason=reason,
                snapshot_version=snapshot.version,
                propensities=None if p is None else p[place],
            )

    def _declared(
        self, group: Group, eligible: Bools, refused: Reason | None
    ) -> tuple[int | None, Reason]:
        """Give the declared action of a customer for whom nothing is chosen, and why."""
        if group is Group.NO_CONTACT:  # refused as all others are, or groups could not be compared
            nothing = None if eligible.any() else Reason.NO_ELIGIBLE_ACTION
            return None, refused or nothing or Reason.NO_CONTACT_GROUP
        if group is Group.BASELINE and refused is None and _allows(eligible, self.baseline):
            return self.baseline, Reason.BASELINE_GROUP
        fallback = self.fallback if _allows(eligible, self.fallback) else None
        return fallback, refused or Reason.NO_ELIGIBLE_ACTION

    def _certain(
        self,
        snapshot: Snapshot,
        question: Question,
        group: Group,
        action: int | None,
        reason: Reason,
    ) -> Decision:
        p = np.zeros(self.spec.actions.size)
        if action is not None:
            p[action] = 1.0
        return Decision(
            decision_id=question.decision_id,
            action=action,
            propensity=1.0,
            group=group,
            reason=reason,
            snapshot_version=snapshot.version,
            propensities=p,
        )

    def _index(self, name: ActionName | None) -> int | None:
        if name is None:
            return None
        return self.spec.actions.index(name.variant, name.channel, name.slot)


def _vector(name: str, values: ArrayLike, kind: type[Number]) -> NDArray[Number]:
    """Give numbers as a contiguous vector of one kind."""
    try:
        vector = np.ascontiguousarray(values, dtype=kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(f"are not all numbers: {error}", field=name) from None
    if np.ndim(values) != 1:  # ascontiguousarray makes a vector of a number
        raise InvalidInputError(f"have shape {np.shape(values)}, need (n,)", field=name)
    return vector


def _allows(eligible: Bools, action: int | None) -> bool:
    return action is not None and bool(eligible[action])
