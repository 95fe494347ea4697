"""What the server can be told, from flags and from the environment (``BANDIT_...``)."""

import os
import secrets
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from bandit.errors import InvalidInputError, UnavailableError


class Settings(BaseSettings):
    """Settings of one server process.

    Attributes
    ----------
    database
        SQLAlchemy URL.
    host, port
        Where to listen; port 0 takes a free one.
    secret_file
        Holds the key of draws, groups and pseudonyms; made beside an SQLite database if absent.
    threads
        Requests handled at a time.
    in_flight
        Requests taken at a time; more are answered UNAVAILABLE.
    max_experiments
        Most experiments of a tenant.
    max_message_bytes
        Largest request.
    grace
        Seconds to finish what is under way at a stop.
    workers
        Processes that serve together, on a database that takes several.
    share_port
        Whether other processes may listen on the same port.
    supervised
        Whether to stop when standard input closes: the process that started this one is gone.
    lease
        Seconds after which another process learns for one that is gone.
    poll
        Seconds between two looks at what other processes wrote.
    metrics_port, metrics_host
        Where metrics and health are served over HTTP, by this process; None: nowhere, and port 0
        takes a free one.
    log_level
        Least severe lines that are written.
    log_format
        ``json``, ``text``, or ``auto``: text on a terminal, JSON elsewhere.
    slow_request
        Seconds from which on a call is logged.
    trace_endpoint
        OTLP (gRPC) address that takes spans; None makes none.
    trace_share
        Share of the calls to trace, of those whose caller did not decide.
    insecure
        Whether a non-loopback address may be served without TLS or without tokens.
    auth
        Who may call: everybody ("none") or who has a token ("tokens"); see ``has_tokens``.
    gate
        Whether a draft starts only with a passing verdict on its specification ("required"), or
        without ("off").
    tls_certificate, tls_key
        PEM files of the server's certificate chain and its key; both or none.
    tls_client_ca
        PEM file of the authorities whose certificates callers must have; none asks for none.
    tenant_in_flight
        Requests of one tenant taken at a time.
    bytes_in_flight
        Bytes of requests taken at a time.
    queue_rows
        Rows that may wait for the writer.
    keepalive
        Seconds of silence after which a connection is probed; 0 never.
    connection_idle, connection_age
        Seconds after which a connection without calls, or any connection, is closed; 0 never.
    """

    model_config = SettingsConfigDict(env_prefix="BANDIT_", extra="forbid", frozen=True)

    database: str = "sqlite:///bandit.db"
    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65_535)
    secret_file: Path | None = None
    threads: int = Field(default=32, ge=1, le=1_024)
    in_flight: int = Field(default=1_024, ge=1, le=100_000)
    max_experiments: int = Field(default=1_000, ge=1, le=100_000)
    max_message_bytes: int = Field(default=4 * 2**20, ge=1_024, le=64 * 2**20)
    grace: float = Field(default=10.0, ge=0.0, le=600.0)
    workers: int = Field(default=1, ge=1, le=64)
    share_port: bool = False
    supervised: bool = False
    lease: float = Field(default=6.0, ge=0.5, le=600.0)
    poll: float = Field(default=0.2, ge=0.01, le=10.0)
    metrics_port: int | None = Field(default=None, ge=0, le=65_535)
    metrics_host: str = "127.0.0.1"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"
    slow_request: float = Field(default=1.0, gt=0.0, le=3_600.0)
    trace_endpoint: str | None = None
    trace_share: float = Field(default=0.01, ge=0.0, le=1.0)
    insecure: bool = False
    auth: Literal["none", "tokens"] | None = None
    gate: Literal["required", "off"] = "required"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tenant_in_flight: int = Field(default=512, ge=1, le=100_000)
    bytes_in_flight: int = Field(default=32 * 2**20, ge=2**20, le=2**34)
    queue_rows: int = Field(default=50_000, ge=1_000, le=10_000_000)
    keepalive: float = Field(default=60.0, ge=0.0, le=86_400.0)
    connection_idle: float = Field(default=900.0, ge=0.0, le=86_400.0)
    connection_age: float = Field(default=3_600.0, ge=0.0, le=604_800.0)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)

    @property
    def has_tokens(self) -> bool:
        """Whether callers need a token: as told, else wherever others can reach the address."""
        if self.auth is not None:
            return self.auth == "tokens"
        return not (self.is_loopback or self.insecure)


def is_loopback(host: str) -> bool:
    """Whether an address is reached by this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read(**given: object) -> Settings:
    """Give settings from what was given and, for the rest, the environment.

    Raises
    ------
    InvalidInputError
        Naming the setting and what would be right.
    """
    try:
        return Settings(**{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError(str(first["msg"]).lower(), field=name) from None


def load_secret(settings: Settings) -> bytes:
    """Read the server's secret; make one on the first start of an SQLite database.

    Raises
    ------
    InvalidInputError
        If there is none for a shared database, or it is too short.
    UnavailableError
        If the file can not be read or written.
    """
    path = settings.secret_file or _beside(settings.database)
    if path is None:
        raise InvalidInputError(
            "name a file with at least 32 random bytes: replicas must share it",
            field="secret_file",
        )
    try:
        if not path.exists() and settings.secret_file is None:
            if not path.parent.is_dir():
                raise UnavailableError(f"there is no folder {path.parent}", field="database")
            _refuse_orphan(path)
            _make_secret(path)
        secret = path.read_bytes().strip()
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}", field="secret_file") from None
    if len(secret) < 32:
        raise InvalidInputError(f"{path} holds fewer than 32 bytes", field="secret_file")
    return secret


def _make_secret(path: Path) -> None:
    """Write a new secret that is there whole, or not at all, after a crash or on a full disk."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(partial, flags, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    except FileExistsError:
        pass  # somebody else was first
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refuse_orphan(secret: Path) -> None:
    if secret.with_suffix("").exists():
        raise InvalidInputError(
            f"the database exists but its secret {secret} is gone; restore it: with another one "
            "no decision could be replayed and every customer would be a stranger",
            field="secret_file",
        )


def _beside(database: str) -> Path | None:
    try:
        url = make_url(database)
    except ArgumentError:
        return None
    is_file = url.get_backend_name() == "sqlite" and url.database
    return Path(f"{url.database}.secret") if is_file else None
