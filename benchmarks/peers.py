"""The engine beside the reference kernels and the best peers, in one run (make bench-engine).

Runs the harness that measured the peers - speed, combi, check, learn - and prints ratios:
machines differ and are shared, so no absolute time means anything.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

HERE = Path(__file__).parent
HARNESS = HERE.parents[1] / "shared" / "bench"
REFERENCES = ("numba-limit", "numba-cov")
BATCH_PEER = "contextualbandits-lints-ci"
PEERS = {
    "gittins": "gittins",
    BATCH_PEER: "contextualbandits",
    "bayesianbandits-normal": "bayesianbandits",
    "vw-squarecb": "vowpalwabbit",
}
"""The best peers, each with the module it needs."""
LIMITS = {
    "linear": 1.7,
    "logistic": 13.3,
    "digits": 5.6,
    "wheel": 7.8,
    "drift": 4.7,
    "delayed": 10.6,
    "coldstart": 0.9,
    "newarms": 2.0,
}
"""Upper ends of the reference's intervals, the best peer's mean for drift: peers.md, table E."""


def options(arguments: argparse.Namespace, engines: list[str], envs: list[str]) -> SimpleNamespace:
    """Give the harness what its own command line would."""
    return SimpleNamespace(
        engines=engines,
        plugin=["peers_adapter"],
        envs=envs,
        sizes=["4x5", "10x20", "50x32", "100x64", "1000x32"],
        seed0=arguments.seed0,
        seeds=arguments.seeds,
        tune_seeds=2,
        cell_s=arguments.cell_s,
        reps=arguments.reps,
        slice=0.1,
        setup_s=40,
        core=arguments.core,
        jobs=arguments.jobs,
    )


def us(row: dict[str, Any], what: str) -> float | None:
    """Give the least microseconds of an engine in one kind of work."""
    return row[what]["us_min"] if row.get(what) else None


def speed_ratios(bench: Any, of: SimpleNamespace) -> list[tuple[str, float, float]]:  # noqa: ANN401
    """Give (work, ratio to the reference, required) for disjoint arms."""
    found = []
    for size, rows in bench.speed(of).items():
        ours = rows["ours"]
        batch = [us(rows[n], "batch") for n in ("numba-cov", BATCH_PEER) if n in rows]
        marks = {
            "decide": (us(rows["numba-cov"], "decide"), 1.2),
            "update": (us(rows["numba-limit"], "update"), 1.2),
            "batch": (min(b for b in batch if b), 1.2),
        }
        for what, (mark, required) in marks.items():
            found.append((f"{what} {size}", us(ours, what) / mark, required))
        print(f"  {size}", {n: {w: us(r, w) for w in marks} for n, r in rows.items()})
    return found


def combi_ratios(bench: Any, of: SimpleNamespace) -> list[tuple[str, float, float]]:  # noqa: ANN401
    """Give the same for 2,400 actions that share 392 parameters."""
    rows = bench.combi(of)
    print("  combi", {n: {w: us(r, w) for w in ("decide", "update")} for n, r in rows.items()})
    return [
        (f"2,400 actions: {what}", us(rows["ours"], what) / us(rows["numba-limit"], what), 1.0)
        for what in ("decide", "update")
    ]


def check_ratios(bench: Any, of: SimpleNamespace) -> list[tuple[str, float, float]]:  # noqa: ANN401
    """Give moments against their tolerances, as ratios."""
    found = []
    for name, row in bench.check(of).items():
        if not name.startswith("ours"):
            continue
        print(f"  check {name}: {json.dumps(row)}")
        off = max(abs(r - 1.0) for r in [*row["sd_ratio"], row["unseen_sd_ratio"]])
        found += [
            (f"{name}: mean", row["mean_error_sd"] / 0.03, 1.0),
            (f"{name}: sd", off / 0.02, 1.0),
            (f"{name}: correlation", row["arm_correlation"] / 0.05, 1.0),
        ]
    return found


def learn_ratios(bench: Any, of: SimpleNamespace) -> list[tuple[str, float, float]]:  # noqa: ANN401
    """Give regret over the reference's."""
    found = []
    for env, rows in bench.learn(of).items():
        row = rows["ours"]
        if "index" not in row:
            print(f"  {env}: {row}")
            found.append((f"regret {env}", float("inf"), 1.0))
            continue
        print(
            f"  {env}: {row['index']:.2f} +- {row['ci95']:.2f}, {row['seeds']} seeds, {row['hp']}"
        )
        found.append((f"regret {env}", row["index"] / LIMITS[env], 1.0))
    return found


def main() -> int:
    """Run the parts asked for; fail if a ratio is above what is required."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ["speed", "combi", "check", "learn"]
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=parts)
    parser.add_argument("--envs", nargs="*", default=list(LIMITS))
    parser.add_argument("--seed0", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--cell-s", type=float, default=150)
    parser.add_argument("--core", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if not HARNESS.is_dir():
        print(f"error: the harness is not at {HARNESS}", file=sys.stderr)
        return 2
    sys.path[:0] = [str(HARNESS), str(HERE)]
    bench = importlib.import_module("bench")
    importlib.import_module("peers_adapter")
    installed = [
        n for n in PEERS if importlib.util.find_spec(n.split("-")[0].replace("vw", "vowpalwabbit"))
    ]
    beside = ["ours", *REFERENCES, *installed]
    runs = {
        "speed": (speed_ratios, beside),
        "combi": (combi_ratios, ["ours", "numba-limit", *installed]),
        "check": (check_ratios, ["ours"]),
        "learn": (learn_ratios, ["ours"]),
    }
    ratios = []
    for part in arguments.parts:
        print(f"{part}:", flush=True)
        run, engines = runs[part]
        ratios += run(bench, options(arguments, engines, arguments.envs))
    print(f"{'work':36s} ratio  required")
    for what, ratio, required in ratios:
        print(f"{what:36s} {ratio:5.2f}  {required:5.2f}{'' if ratio <= required else '  MISSED'}")
    speed = [ratio for what, ratio, _ in ratios if not what.startswith(("ours", "regret"))]
    print(f"worst ratio to the reference: {max(speed, default=float('nan')):.2f}")
    return int(any(ratio > required for _, ratio, required in ratios))


if __name__ == "__main__":
    sys.exit(main())
