"""Options that several commands share."""

import functools
import getpass
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bandit import spec_file
from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec
from server.client import BanditClient
from server.tls import Security

Address = Annotated[str, typer.Option(envvar="BANDIT_ADDRESS", help="host:port of the server.")]
DatabaseUrl = Annotated[
    str, typer.Option(envvar="BANDIT_DATABASE", help="SQLAlchemy URL, as given to the server.")
]
SecretFile = Annotated[
    Path | None,
    typer.Option(envvar="BANDIT_SECRET_FILE", help="As given to the server; else beside SQLite."),
]
Reason = Annotated[str, typer.Option(help="Why, for the audit log.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="OURS=THEIRS: a column's name where it is another."),
]
LogGroups = Annotated[
    list[str] | None, typer.Option("--group", help="Traffic group to read; default bandit, random.")
]
Exclude = Annotated[
    bool, typer.Option("--exclude", help="Leave bad rows out and count them, instead of ending.")
]
Override = Annotated[
    str, typer.Option(help="Why it may start without a passing verdict; for the audit log.")
]
DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_DATABASE = "sqlite:///bandit.db"


def read_spec(path: Path) -> ExperimentSpec:
    """Read a specification from a .toml, .yaml or .json file.

    Raises
    ------
    InvalidInputError
        Naming the file and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"can not be read: {error}", field=str(path)) from None
    try:
        return spec_file.parse(text, path.suffix.removeprefix(".").lower())
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=str(path)) from None


def read_context(text: str) -> dict[str, object]:
    """Read a context given as a JSON object.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    try:
        context = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"is not JSON: {error}", field="context") from None
    if not isinstance(context, dict):
        raise InvalidInputError('needs an object such as {"age": 41}', field="context")
    return context


def read_columns(given: list[str] | None) -> dict[str, str]:
    """Read names of columns given as ``OURS=THEIRS``.

    Raises
    ------
    InvalidInputError
        If one is not, or names ours twice.
    """
    columns: dict[str, str] = {}
    for one in given or ():
        ours, sign, theirs = one.partition("=")
        if not (ours and sign and theirs):
            raise InvalidInputError(f"{one!r} is not OURS=THEIRS", field="column")
        if ours in columns:
            raise InvalidInputError(f"{ours!r} is given twice", field="column")
        columns[ours] = theirs
    return columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server that a command calls, as its options say.

    Parameters
    ----------
    address
        ``host:port``; empty where a command may do without one.
    security
        Token and TLS.
    """

    address: str
    security: Security

    def client(self, timeout: float = 5.0) -> BanditClient:
        """Open a client."""
        return BanditClient(self.address, timeout=timeout, security=self.security)


def _connecting(  # noqa: PLR0913  one per option
    *,
    address: Address = DEFAULT_ADDRESS,
    token: Annotated[
        str,
        typer.Option(
            envvar="BANDIT_TOKEN", show_envvar=True, help="From 'banditctl tokens create'."
        ),
    ] = "",
    tls: Annotated[bool, typer.Option("--tls", envvar="BANDIT_TLS", help="Speak TLS.")] = False,
    ca: Annotated[
        Path | None,
        typer.Option(envvar="BANDIT_CA", help="Authorities to trust, PEM; speaks TLS."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(envvar="BANDIT_CERTIFICATE", help="Your certificate, PEM."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(envvar="BANDIT_KEY", help="The key of your certificate, PEM.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let the token travel in plain text.")
    ] = False,
) -> Server:
    security = Security(
        token=token.strip(),
        is_encrypted=tls,
        ca=ca,
        certificate=certificate,
        key=key,
        is_plain_allowed=insecure,
    )
    return Server(address=address, security=security)


Command = Callable[..., None]


def calls_server(*, address: str = DEFAULT_ADDRESS) -> Callable[[Command], Command]:
    """Give a command that takes a ``server`` the options that say which, and how to reach it.

    Parameters
    ----------
    address
        The server's, if none is given.
    """
    said = inspect.signature(_connecting).parameters

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**given: Any) -> None:  # noqa: ANN401  what typer read
            server = _connecting(**{name: given.pop(name) for name in said})
            command(**given, server=server)

        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.name != "server"]
        shared = [p.replace(default=address) if p.name == "address" else p for p in said.values()]
        shown = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
        run.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in shown}
        return run

    return decorate


def operator() -> str:
    """Name who works on the database by hand, for the audit log."""
    try:
        return f"banditctl ({getpass.getuser()})"[:128]
    except (KeyError, OSError):  # a container without a user of this number
        return "banditctl"
