"""The client's calls that edit experiments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from google.protobuf.field_mask_pb2 import FieldMask

from bandit.spec import ExperimentSpec
from server import convert
from server.pb import bandit_pb2 as pb
from server.pb import bandit_pb2_grpc as stubs

R = TypeVar("R")


class Edits:
    """Edits of experiments, for a client to have."""

    _experiments: stubs.ExperimentServiceStub

    def _call(self, method: Callable[..., R], request: Any) -> R:  # noqa: ANN401  a message
        raise NotImplementedError

    def update_experiment(  # noqa: PLR0913  what an edit may say
        self,
        name: str,
        spec: ExperimentSpec,
        *,
        reason: str,
        only: Sequence[str] = (),
        etag: str = "",
        override: str = "",
        request_id: str = "",
    ) -> pb.UpdateExperimentResponse:
        """Edit an experiment's specification; nothing that was learned is lost.

        Parameters
        ----------
        spec
            The new specification, or what holds the new parts of it.
        reason
            Why, for the audit log.
        only
            Paths of the parts to take over, such as ``policy.exploration``; none: all of it.
        etag
            As last seen: then a change by somebody else meanwhile raises ``ChangedError``.
        override
            Why what has been started is edited without a passing verdict; empty: it needs one.
        request_id
            Idempotency key; a new UUID if left out.
        """
        request = pb.UpdateExperimentRequest(
            name=name,
            spec=convert.spec_message(spec),
            update_mask=FieldMask(paths=only),
            etag=etag,
            request_id=request_id or str(uuid4()),
            reason=reason,
            override=override,
        )
        return self._call(self._experiments.UpdateExperiment, request)

    def add_level(  # noqa: PLR0913  what an edit may say
        self,
        name: str,
        factor: str,
        level: str,
        *,
        reason: str,
        time: str | None = None,
        attributes: Mapping[str, float] | None = None,
        etag: str = "",
        override: str = "",
        request_id: str = "",
    ) -> pb.AddLevelResponse:
        """Add a level to a factor: ``variant``, ``channel`` or ``slot``.

        Parameters
        ----------
        time
            Slots only: local time of day ``HH:MM``; None: at once.
        attributes
            Numbers that describe the level, as the others of its factor have them.
        reason, etag, override, request_id
            As in ``update_experiment``.
        """
        request = pb.AddLevelRequest(
            name=name,
            factor=factor,
            level=pb.Level(name=level, time=time, attributes=attributes),
            etag=etag,
            request_id=request_id or str(uuid4()),
            reason=reason,
            override=override,
        )
        return self._call(self._experiments.AddLevel, request)

    def retire_level(  # noqa: PLR0913  what an edit may say
        self,
        name: str,
        factor: str,
        level: str,
        *,
        reason: str,
        etag: str = "",
        request_id: str = "",
    ) -> pb.RetireLevelResponse:
        """Choose a level of a factor no more.

        Parameters
        ----------
        reason, etag, request_id
            As in ``update_experiment``.
        """
        request = pb.RetireLevelRequest(
            name=name,
            factor=factor,
            level=level,
            etag=etag,
            request_id=request_id or str(uuid4()),
            reason=reason,
        )
        return self._call(self._experiments.RetireLevel, request)
