"""Reproduce a row of README's table from its committed configuration.

    DDRAY_DATA=DIR python benchmarks/reproduce.py mnist-fixed-10            distil every seed, print validation
    DDRAY_DATA=DIR python benchmarks/reproduce.py mnist-fixed-10 --test     look at test as well, and write it down
    python benchmarks/reproduce.py --table                                  README's table, from the ledger

Sets and checkpoints lie in benchmarks/out/: a seed that is done is not distilled again, an interrupted one goes on. Every look at
the test split is a further line of benchmarks/test_ledger.jsonl: row, date, commit, configuration digest, score and n.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import ddray
from ddray.distillation import EngineConfig, Progress
from ddray.distillation.assess import assess
from ddray.distillation.streams import NETWORKS

HERE = Path(__file__).resolve().parent
CONFIGS, OUT, LEDGER = HERE / "configs", HERE / "out", HERE / "test_ledger.jsonl"


def main() -> int:
    """Run one row, or print the table."""
    rows = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", choices=rows)
    parser.add_argument("--test", action="store_true", help="score on the test split too, and append to the ledger")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of all rows in the ledger")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return 0
    if arguments.row is None:
        parser.error(f"name a row: {', '.join(rows)}")
    reproduce(arguments.row, test=arguments.test, threads=arguments.threads)
    return 0


def reproduce(row: str, *, test: bool, threads: int) -> None:
    """Distil every seed of a row and print its scores; with `test`, look and write it down."""
    text = (CONFIGS / f"{row}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    runs = []
    for seed in config["seeds"]:
        place, minutes = distilled(row, digest, config, seed, threads)
        found = {"seed": seed, "minutes": minutes}
        for split in ("validation", "test") if test else ("validation",):
            nets = None if config["config"].get("network.source") == "fixed" else config.get("nets", NETWORKS["C"])
            scores = assess(place, nets=nets, split=split, baselines=False).scores
            kept = {score.protocol: score.model_dump(mode="json", exclude={"accuracies", "date"}) for score in scores}
            found[split] = kept["as-distilled"]
            if "decoded" in kept:
                found[f"{split} decoded"] = kept["decoded"]
            for score in scores:
                print(f"{row} seed {seed}: {score}", flush=True)
        runs.append(found)
    for split in ("validation", "test") if test else ("validation",):
        means = [run[split]["mean"] for run in runs]
        print(f"{row}: {split} {summary(means)} over {len(means)} distillation seed(s)", flush=True)
    if test:
        append(
            {
                "row": row,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(),
                "config": digest,
                "samples": config["samples"],
                "source": config["config"]["network.source"],
                "runs": runs,
            }
        )


def distilled(row: str, digest: str, config: dict[str, Any], seed: int, threads: int) -> tuple[Path, float]:
    """The set of one seed, distilled if it is not there yet, and the minutes that took."""
    place = OUT / f"{row}-{digest}-{seed}"
    OUT.mkdir(exist_ok=True)
    clock = place.with_suffix(".seconds")
    if not place.exists():
        spent, began = float(clock.read_text()) if clock.exists() else 0.0, time.monotonic()

        def report(progress: Progress) -> None:
            clock.write_text(repr(spent + time.monotonic() - began))
            print(f"{row} seed {seed}: step {progress.step} of {progress.steps}, loss {progress.loss:.3f}, validation "
                  f"{100 * progress.score.mean:.2f} %", file=sys.stderr, flush=True)  # fmt: skip

        ddray.distill(
            config["dataset"], config["arch"], config["config"], seed=seed,
            engine=EngineConfig.model_validate({"threads": threads, **config.get("engine", {})}),
            checkpoint=place.with_suffix(".checkpoint"), save_to=place, report=report,
        )  # fmt: skip
    return place, float(clock.read_text()) / 60


def append(entry: dict[str, Any]) -> None:
    """Write a look at the test split down: a second look is a second line."""
    with LEDGER.open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(entry) + "\n")


def table() -> str:
    """The last line of each row in the ledger, as Markdown."""
    last = {entry["row"]: entry for entry in map(json.loads, LEDGER.read_text(encoding="utf-8").splitlines())}
    looks = [json.loads(line)["row"] for line in LEDGER.read_text(encoding="utf-8").splitlines()]
    lines = [
        "| row | samples | network | validation | test | minutes a run | looks at test |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, entry in last.items():
        if not row.startswith("mnist"):  # text has a table of its own: benchmarks/text_table.py
            continue
        cells = [over_seeds(entry["runs"], split) for split in ("validation", "test")]
        minutes = statistics.mean(run["minutes"] for run in entry["runs"])
        lines.append(
            f"| {row} | {entry['samples']} | {entry['source']} | {cells[0]} | {cells[1]} | {minutes:.0f} | {looks.count(row)} |"
        )
    return "\n".join(lines)


def over_seeds(runs: list[dict[str, Any]], split: str) -> str:
    """The mean over distillation seeds; of one seed, what its score says."""
    scores = [run[split] for run in runs]
    if len(scores) > 1:
        return f"{summary([score['mean'] for score in scores])} ({len(scores)} seeds)"
    score = scores[0]
    if score["std"] is not None:
        return f"{100 * score['mean']:.2f} ± {100 * score['std']:.2f} % ({score['n']} networks, one seed)"
    low, high = score["interval"]
    return f"{100 * score['mean']:.2f} % ({100 * low:.1f} to {100 * high:.1f}, one seed)"


def summary(means: list[float]) -> str:
    """Mean and, of several, standard deviation, in per cent."""
    if len(means) == 1:
        return f"{100 * means[0]:.2f} %"
    return f"{100 * statistics.mean(means):.2f} ± {100 * statistics.stdev(means):.2f} %"


def commit() -> str:
    """The commit of this checkout, with `+` where files differ from it."""
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
    )
    changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no", "--", "ddray"], cwd=HERE,
                             capture_output=True, text=True, check=True)  # fmt: skip
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


if __name__ == "__main__":
    sys.exit(main())
