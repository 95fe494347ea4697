"""Page tokens: opaque to callers, sealed, and good for one tenant and one kind of list."""

import base64
import binascii

from bandit import rng
from bandit.errors import InvalidInputError


class Pages:
    """Makes tokens that say where the next page begins, and reads them.

    Parameters
    ----------
    secret
        Keys the seals.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def token(self, name: str, tenant: str, kind: str = "page") -> str:
        """Give the token of the page after ``name``."""
        data = name.encode()
        return base64.urlsafe_b64encode(self._seal(data, tenant, kind) + data).decode()

    def after(self, token: str, tenant: str, kind: str = "page") -> str:
        """Give the name after which a page begins; empty for the first.

        Raises
        ------
        InvalidInputError
            If it is no token that this tenant was given for this kind of list.
        """
        if not token:
            return ""
        try:
            data = base64.b64decode(token, altchars=b"-_", validate=True)
            seal, name = data[:8], data[8:]
            if self._seal(name, tenant, kind) == seal:
                return name.decode()
        except (binascii.Error, ValueError):
            pass
        raise InvalidInputError("is no token of an earlier answer", field="page_token")

    def _seal(self, data: bytes, tenant: str, kind: str) -> bytes:
        return rng.keyed(self._secret, kind, tenant, data)[:8]
