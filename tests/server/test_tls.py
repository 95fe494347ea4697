"""TLS with certificates made for the test: who is trusted and asked, which files are refused."""

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from bandit.errors import BanditError, DeadlineError, InvalidInputError, UnavailableError
from server.app import Server
from server.client import BanditClient
from server.settings import Settings
from server.tls import Security
from tests.server.access_harness import make_token, write
from tests.server.harness import Peer, eventually

OURS = trustme.CA()
STRANGERS = trustme.CA()


def files(folder: Path, ca: trustme.CA, *names: str) -> dict[str, Path]:
    """Write a certificate for these names, its key, and the authority that signed it."""
    made = ca.issue_cert(*names)
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    return write(
        folder, certificate=chain, key=made.private_key_pem.bytes(), ca=ca.cert_pem.bytes()
    )


@pytest.fixture
def shown(tmp_path: Path) -> dict[str, Path]:
    """Give the files of a server on this machine."""
    (tmp_path / "shown").mkdir()
    return files(tmp_path / "shown", OURS, "localhost", "127.0.0.1")


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Path]:
    """Give the files of a client."""
    (tmp_path / "own").mkdir()
    return files(tmp_path / "own", OURS, "mailer@example.com")


def tls(shown: dict[str, Path], **more: object) -> dict[str, object]:
    return {"tls_certificate": shown["certificate"], "tls_key": shown["key"], **more}


def listed(peer: Peer, security: Security | None, patience: float = 20.0) -> int:
    address = f"localhost:{peer.server.port}"
    with BanditClient(address, timeout=patience, security=security) as client:
        return len(client.list_experiments())


def assert_refused(peer: Peer, security: Security | None) -> None:
    with pytest.raises((UnavailableError, DeadlineError)):
        listed(peer, security, patience=0.7)


@pytest.fixture
def encrypted(tmp_path: Path, shown: dict[str, Path]) -> Iterator[Peer]:
    with Peer(tmp_path, **tls(shown)) as peer:
        yield peer


def test_who_trusts_the_authority_is_served(encrypted: Peer, shown: dict[str, Path]):
    assert listed(encrypted, Security(ca=shown["ca"])) == 0


def test_plain_text_gets_nowhere(encrypted: Peer):
    assert_refused(encrypted, None)


def test_a_client_refuses_a_server_it_does_not_trust(encrypted: Peer, tmp_path: Path):
    other = write(tmp_path, other=STRANGERS.cert_pem.bytes())["other"]
    for security in (Security(ca=other), Security(is_encrypted=True)):
        assert_refused(encrypted, security)


def test_a_client_refuses_a_certificate_of_another_name(tmp_path: Path):
    elsewhere = files(tmp_path, OURS, "elsewhere.example.com")
    with Peer(tmp_path, **tls(elsewhere)) as peer:
        assert_refused(peer, Security(ca=elsewhere["ca"]))


def test_mutual_tls_asks_for_a_certificate(
    tmp_path: Path, shown: dict[str, Path], own: dict[str, Path]
):
    (tmp_path / "strange").mkdir()
    strange = files(tmp_path / "strange", STRANGERS, "mailer@example.com")
    with Peer(tmp_path, **tls(shown, tls_client_ca=own["ca"])) as peer:
        trusted = Security(ca=shown["ca"], certificate=own["certificate"], key=own["key"])
        assert listed(peer, trusted) == 0
        nameless = Security(ca=shown["ca"])
        stranger = Security(ca=shown["ca"], certificate=strange["certificate"], key=strange["key"])
        for security in (nameless, stranger):
            assert_refused(peer, security)


def test_off_loopback_with_tls_and_tokens(tmp_path: Path, shown: dict[str, Path]):
    """All addresses of this machine; called over loopback all the same."""
    with Peer(tmp_path, host="0.0.0.0", **tls(shown)) as peer:  # noqa: S104
        assert peer.settings.has_tokens
        token = make_token(peer)[1]
        assert listed(peer, Security(ca=shown["ca"], token=token)) == 0
        with pytest.raises(BanditError, match="token in force"):
            listed(peer, Security(ca=shown["ca"]))


def test_old_versions_of_tls_are_refused(encrypted: Peer, shown: dict[str, Path]):
    context = ssl.create_default_context(cafile=shown["ca"])
    context.set_alpn_protocols(["h2"])

    def version() -> str | None:
        with (
            socket.create_connection(("127.0.0.1", encrypted.server.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            return wrapped.version()

    assert version() in ("TLSv1.2", "TLSv1.3")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        version()


def test_renewed_files_are_taken_over(encrypted: Peer, shown: dict[str, Path], tmp_path: Path):
    (tmp_path / "new").mkdir()
    renewed = files(tmp_path / "new", STRANGERS, "localhost")
    shown["key"].write_bytes(b"half a")  # someone looks in between: the old ones are kept
    assert listed(encrypted, Security(ca=shown["ca"])) == 0
    shown["certificate"].write_bytes(renewed["certificate"].read_bytes())
    shown["key"].write_bytes(renewed["key"].read_bytes())

    def is_renewed() -> bool:
        try:
            return listed(encrypted, Security(ca=renewed["ca"]), patience=2.0) == 0
        except (UnavailableError, DeadlineError):
            return False

    eventually(is_renewed)
    assert_refused(encrypted, Security(ca=shown["ca"]))


Spoil = Callable[[dict[str, Path]], tuple[dict[str, object], str, str]]

# --- files that can not be used ---------------------------------------------------------


def missing(paths: dict[str, Path]) -> tuple[dict[str, object], str, str]:
    paths["key"].unlink()
    return tls(paths), "tls_key", "No such file"


def no_key(paths: dict[str, Path]) -> tuple[dict[str, object], str, str]:
    return {"tls_certificate": paths["certificate"]}, "tls_key", "is missing"


def no_certificate(paths: dict[str, Path]) -> tuple[dict[str, object], str, str]:
    return {"tls_key": paths["key"]}, "tls_certificate", "is missing"


def mismatch(paths: dict[str, Path]) -> tuple[dict[str, object], str, str]:
    other = OURS.issue_cert("localhost")
    paths["key"].write_bytes(other.private_key_pem.bytes())
    return tls(paths), "tls_key", "is not the key of"


def swapped(paths: dict[str, Path]) -> tuple[dict[str, object], str, str]:
    wrong = {"tls_certificate": paths["key"], "tls_key": paths["certificate"]}
    return wrong, "tls_certificate", "PEM"


def garbage(paths: dict[str, Path]) -> tuple[dict[str, object], str, str]:
    paths["key"].write_bytes(b"-----BEGIN\0")
    return tls(paths), "tls_key", "PEM"


def empty_authority(paths: dict[str, Path]) -> tuple[dict[str, object], str, str]:
    paths["ca"].write_bytes(b"")
    return tls(paths, tls_client_ca=paths["ca"]), "tls_client_ca", "no certificate"


def only_authority(paths: dict[str, Path]) -> tuple[dict[str, object], str, str]:
    return {"tls_client_ca": paths["ca"]}, "tls_client_ca", "needs tls_certificate"


@pytest.mark.parametrize(
    "spoil",
    [
        missing,
        no_key,
        no_certificate,
        mismatch,
        swapped,
        garbage,
        empty_authority,
        only_authority,
    ],
)
def test_files_that_can_not_be_used(tmp_path: Path, shown: dict[str, Path], spoil: Spoil):
    given, field, told = spoil(shown)
    with pytest.raises(InvalidInputError, match=told) as caught:
        Server(Settings(database=f"sqlite:///{tmp_path / 'bandit.db'}", port=0, **given))
    assert caught.value.field == field
    with Peer(tmp_path):  # nothing was left open
        pass


def test_client_files_that_can_not_be_used(tmp_path: Path, own: dict[str, Path]):
    with pytest.raises(InvalidInputError, match="both"):
        Security(certificate=own["certificate"])
    with pytest.raises(InvalidInputError, match="No such file"):
        BanditClient("127.0.0.1:1", security=Security(ca=tmp_path / "none"))
    swapped = Security(certificate=own["key"], key=own["certificate"])
    with pytest.raises(InvalidInputError, match="PEM"):
        BanditClient("127.0.0.1:1", security=swapped)


def test_a_token_does_not_travel_in_plain_text():
    security = Security(token="bandit_secret")  # noqa: S106
    with pytest.raises(InvalidInputError, match="plain text") as caught:
        BanditClient("server.example.com:50051", security=security)
    assert "bandit_secret" not in str(caught.value)
    allowed = Security(token="bandit_secret", is_plain_allowed=True)  # noqa: S106
    BanditClient("server.example.com:50051", security=allowed).close()
    BanditClient("127.0.0.1:50051", security=security).close()


def test_what_the_client_sends_is_ascii():
    with pytest.raises(InvalidInputError, match="ASCII"):
        Security(token="bandit_\n")  # noqa: S106
    assert Security().metadata == ()
    assert isinstance(Security().channel("127.0.0.1", "1"), grpc.Channel)
