"""Every error the engine and the service raise on purpose.

Callers catch by class; ``server.status`` maps each class to one gRPC code, and a test
walks this tree so that no class is left unmapped.
"""


class BanditError(Exception):
    """Root of the tree: anything else that escapes is a bug.

    Parameters
    ----------
    message
        What is wrong and what would be right, without the path.
    field
        Path of the offending value, such as ``contexts[3].values["age"]``; empty if none.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        self.field = field

    def under(self, prefix: str) -> "BanditError":
        """Give the same error with ``prefix`` before its path."""
        dot = "." if prefix and self.field and not self.field.startswith("[") else ""
        return type(self)(self.message, field=f"{prefix}{dot}{self.field}")


class InvalidInputError(BanditError, ValueError):
    """The caller's value can never be right; retrying will not help."""


class NotFoundError(BanditError):
    """No such experiment, decision or action."""


class ConflictError(BanditError):
    """The same id was seen before with a different content."""


class ChangedError(BanditError):
    """What the caller saw last is no longer so; read again, then decide again."""


class StateError(BanditError):
    """The experiment's state does not allow the call; change the state first."""


class UnauthenticatedError(BanditError):
    """The call carries no credential that is known here; nothing was done."""


class ForbiddenError(BanditError):
    """The credential is known, and its roles do not allow the call; nothing was done."""


class UnavailableError(BanditError):
    """The service can not take the call now; the same call may be retried.

    Parameters
    ----------
    is_shed
        Whether that is only because it has as much to do as it may.
    """

    def __init__(self, message: str, *, field: str = "", is_shed: bool = False) -> None:
        super().__init__(message, field=field)
        self.is_shed = is_shed


class DeadlineError(BanditError):
    """The caller's deadline passed before the work began; nothing was done."""


class CorruptionError(BanditError):
    """Stored bytes are not what was written; nothing is guessed from them."""
