"""Verdicts as messages, and back."""

from bandit.errors import BanditError, InvalidInputError
from bandit.verdict import MAX_CHECKS, MAX_SOURCES, Check, Verdict
from server import convert, verdicts
from server.pb import bandit_pb2 as pb
from server.schema import AnyRow


def read(message: pb.Verdict) -> Verdict:
    """Read a verdict.

    Raises
    ------
    InvalidInputError
        With the path of the first part that does not fit, or if it calls itself passed and one
        of its checks does not hold.
    """
    convert.text(message.experiment, "verdict.experiment", 64)
    for field, most in (("checks", MAX_CHECKS), ("worlds", MAX_SOURCES)):
        found = len(getattr(message, field))
        if found > most:
            raise InvalidInputError(
                f"{found} entries, at most {most} are allowed", field=f"verdict.{field}"
            )
    try:
        verdict = Verdict(
            experiment=message.experiment,
            spec_hash=message.spec_hash,
            checks=tuple(_check(one, i) for i, one in enumerate(message.checks)),
            worlds=tuple(message.worlds),
            log=message.log,
            seed=message.seed,
            engine=message.engine,
        )
    except BanditError as error:
        raise error.under("verdict") from None
    if message.passed is not verdict.passed:
        raise InvalidInputError(
            f"is {str(message.passed).lower()}, and the checks say otherwise",
            field="verdict.passed",
        )
    return verdict


def write(verdict: Verdict) -> pb.Verdict:
    """Give a verdict as a message."""
    return pb.Verdict(
        experiment=verdict.experiment,
        spec_hash=verdict.spec_hash,
        passed=verdict.passed,
        checks=[
            pb.Check(
                name=check.name,
                source=check.source,
                passed=check.passed,
                value=check.value,
                limit=check.limit,
                bound=check.bound,
                found=check.found,
                why=check.why,
            )
            for check in verdict.checks
        ],
        worlds=verdict.worlds,
        log=verdict.log,
        seed=verdict.seed,
        engine=verdict.engine,
    )


def stored(row: AnyRow) -> pb.StoredVerdict:
    """Give a verdict as stored."""
    return pb.StoredVerdict(
        verdict=write(verdicts.read(row)),
        override=row.override,
        who=row.made_by,
        at=convert.timestamp(row.made_at),
        audit_sequence=row.audit_seq,
    )


def _check(message: pb.Check, place: int) -> Check:
    texts = {name: getattr(message, name) for name in ("name", "source", "found", "why")}
    try:
        for name, value in texts.items():
            if "\0" in value:
                raise InvalidInputError("holds a NUL character", field=name)
        return Check(
            **texts,
            passed=message.passed,
            value=message.value if message.HasField("value") else None,
            limit=message.limit if message.HasField("limit") else None,
            bound=message.bound,  # type: ignore[arg-type]  # the class checks it
        )
    except BanditError as error:
        raise error.under(f"checks[{place}]") from None
