"""Generate server/pb from the contract: ``python proto/generate.py [output root]``.

``-Iserver/pb=proto/bandit/v1`` mounts the contract at the virtual path ``server/pb``, so
protoc itself writes ``from server.pb import ...`` and no generated line is patched.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]


def main(out: Path) -> int:
    """Run protoc; return its exit status."""
    return int(
        protoc.main(
            [
                "protoc",
                f"-Iserver/pb={ROOT}/proto/bandit/v1",
                f"-I{files('grpc_tools') / '_proto'}",  # Timestamp and friends
                f"--python_out={out}",
                f"--mypy_out=quiet:{out}",
                f"--grpc_python_out={out}",
                f"--mypy_grpc_out=quiet:{out}",
                "server/pb/bandit.proto",
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
