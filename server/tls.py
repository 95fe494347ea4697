"""TLS: what a server shows and asks for, and what a client trusts and shows.

Files are checked with Python's own ``ssl`` before grpc sees them, because grpc tells a wrong
file only by refusing every handshake.
"""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from bandit.errors import InvalidInputError
from server.settings import Settings, is_loopback

log = logging.getLogger(__name__)

_CHANNEL = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a client speaks to a server.

    Parameters
    ----------
    token
        Bearer token; empty sends none.
    is_encrypted
        Whether to speak TLS; files below imply it.
    ca
        PEM file of the authorities to trust; None trusts those of grpc.
    certificate, key
        PEM files of the client's own certificate and key, where the server asks for one.
    is_plain_allowed
        Whether a token may travel in plain text to an address that is not loopback.
    """

    token: str = ""
    is_encrypted: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    is_plain_allowed: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidInputError("needs both, --certificate and --key", field="certificate")
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise InvalidInputError("is no token: it holds other than ASCII letters", field="token")

    def __repr__(self) -> str:
        return f"Security(encrypted={self.encrypted}, token={'given' if self.token else 'none'})"

    @property
    def encrypted(self) -> bool:
        """Whether to speak TLS."""
        return self.is_encrypted or self.ca is not None or self.certificate is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, host: str, port: str) -> grpc.Channel:
        """Open a channel.

        Raises
        ------
        InvalidInputError
            If a file can not be used, or the token would travel in plain text.
        """
        address = f"{host}:{port}"
        if not self.encrypted:
            is_safe = self.is_plain_allowed or is_loopback(host)
            if self.token and not is_safe:
                raise InvalidInputError(
                    f"would travel to {host} in plain text; say --tls, or --insecure where the "
                    "network itself is safe",
                    field="token",
                )
            return grpc.insecure_channel(address, options=_CHANNEL)
        own: tuple[bytes | None, bytes | None] = (None, None)
        if self.certificate is not None and self.key is not None:
            own = _pair(self.certificate, self.key, "certificate", "key")
        trusted = None if self.ca is None else _authorities(self.ca, "ca")
        credentials = grpc.ssl_channel_credentials(trusted, own[1], own[0])
        return grpc.secure_channel(address, credentials, options=_CHANNEL)


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Give what a server shows and asks for; None where it speaks plain text.

    Files that change are taken over at the next handshake; those that can not be used then are
    left aside, and the last good ones kept.

    Raises
    ------
    InvalidInputError
        Naming the setting and the file that can not be used.
    """
    if settings.tls_certificate is None and settings.tls_key is None:
        if settings.tls_client_ca is not None:
            raise InvalidInputError("needs tls_certificate and tls_key, too", field="tls_client_ca")
        return None
    for name, file in (
        ("tls_certificate", settings.tls_certificate),
        ("tls_key", settings.tls_key),
    ):
        if file is None:
            raise InvalidInputError("is missing: TLS needs a certificate and its key", field=name)
    first = _configuration(settings)
    seen = _stamps(settings)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        now = _stamps(settings)
        if now == seen:
            return None
        seen = now
        try:
            renewed = _configuration(settings)
        except InvalidInputError as error:
            log.error("the TLS files were changed and can not be used: %s", error)  # noqa: TRY400
            return None
        log.info("the TLS files were changed and are taken over")
        return renewed

    return grpc.dynamic_ssl_server_credentials(
        first,
        fetch,  # type: ignore[arg-type]  # None means unchanged
        require_client_authentication=settings.tls_client_ca is not None,
    )


def _configuration(settings: Settings) -> grpc.ServerCertificateConfiguration:
    certificate, key = settings.tls_certificate, settings.tls_key
    assert certificate is not None  # noqa: S101  checked by the caller
    assert key is not None  # noqa: S101
    chain, own = _pair(certificate, key, "tls_certificate", "tls_key")
    ca = settings.tls_client_ca
    asked = None if ca is None else _authorities(ca, "tls_client_ca")
    return grpc.ssl_server_certificate_configuration([(own, chain)], asked)


def _stamps(settings: Settings) -> list[tuple[int, int] | None]:
    """Tell the files' states apart."""
    found: list[tuple[int, int] | None] = []
    for file in (settings.tls_certificate, settings.tls_key, settings.tls_client_ca):
        try:
            state = None if file is None else file.stat()
        except OSError:
            state = None
        found.append(None if state is None else (state.st_mtime_ns, state.st_ino))
    return found


def _pair(certificate: Path, key: Path, of_certificate: str, of_key: str) -> tuple[bytes, bytes]:
    """Read a certificate chain and its key."""
    chain, own = _read(certificate, of_certificate), _read(key, of_key)
    try:
        _context().load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidInputError(
                f"{key} is not the key of {certificate}", field=of_key
            ) from None
        wrong = (of_certificate, certificate) if b"BEGIN CERT" not in chain else (of_key, key)
        raise InvalidInputError(
            f"{wrong[1]} can not be used: it needs PEM, and a key without a pass phrase "
            f"({error.reason or 'no PEM'})",
            field=wrong[0],
        ) from None
    return chain, own


def _authorities(file: Path, field: str) -> bytes:
    """Read certificates of authorities."""
    content = _read(file, field)
    try:
        _context().load_verify_locations(file)
    except ssl.SSLError as error:
        raise InvalidInputError(
            f"{file} holds no certificate in PEM ({error.reason or 'no PEM'})", field=field
        ) from None
    return content


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def _read(file: Path, field: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{file}: {error.strerror}", field=field) from None
