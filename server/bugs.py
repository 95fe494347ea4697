"""How a bug is told in the log: where it happened, and never what it was about.

The message of an exception may quote what a customer is like; the lines of a traceback can not.
"""

import logging
import traceback


def tell(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log the kind of an error and the lines it came through, without its message."""
    lines = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("%s: %s\n%s", what, type(error).__name__, lines)
