"""``banditctl``: the command line that ties server, client and simulator together."""

import importlib
import os
import sys


def main() -> None:
    """Run the command line; end with one line and status 1 on an expected error."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are told in one line, by us
    try:
        _check_import()
        from server.commands import run

        sys.exit(run())
    except KeyboardInterrupt:
        sys.exit(130)


def _check_import() -> None:
    """Stop if another distribution (PyCQA's linter) owns the import name ``bandit``."""
    found = importlib.import_module("bandit")
    if getattr(found, "PROJECT", None) != "banditctl":
        sys.exit(
            f"error: the package 'bandit' at {found.__file__} is not banditctl's (PyCQA's linter "
            "has the same import name); install banditctl in an environment of its own"
        )


if __name__ == "__main__":
    main()
