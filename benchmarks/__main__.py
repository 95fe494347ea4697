"""Run every benchmark and keep the figures: ``python -m benchmarks [FILE]``."""

import json
import platform
import sys
from pathlib import Path

from benchmarks import engine, server


def main() -> None:
    """Measure engine and server; write JSON if a file is named."""
    timings = engine.main()
    served = server.main()
    if len(sys.argv) > 1:
        kept = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "engine_us": {what: round(us, 2) for what, us, _ in timings},
            "server": served,
        }
        Path(sys.argv[1]).write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
