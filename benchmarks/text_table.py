"""The table of distilled texts in docs/text.md, from the ledger: ours beside the seed's, and beside all of the data.

    python benchmarks/text_table.py

A figure is the mean over distillation seeds, "±" the standard deviation over networks within a seed. "Higher" is above the seed's
figure by two standard errors of the difference. Ours is over distillation seeds, and for known networks over the test split's
examples too, which the seeds share; theirs is over networks, or over the examples.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
from typing import Any

import yaml
from reproduce import CONFIGS, LEDGER


def main() -> int:
    """Print the table as Markdown."""
    entries = [json.loads(line) for line in LEDGER.read_text(encoding="utf-8").splitlines()]
    print(
        "| row | sentences | validation | test | each seed, test | the seed | ours is | all data, test | decoded, test "
        "| minutes | looks |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for path in sorted(CONFIGS.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        config, digest = yaml.safe_load(text), hashlib.sha256(text.encode()).hexdigest()[:12]
        looks = [entry for entry in entries if entry["row"] == path.stem]
        # Of several configurations that were looked at, the committed one counts: it is the one that validates best.
        ours = [entry["runs"] for entry in looks if entry["config"] == digest]
        if "seed_results" in config and ours:
            full = [e for e in entries if e["row"] == f"full {config['dataset']} {config['arch']}"]
            print(line(path.stem, config, ours[-1], full, len(looks)))
    return 0


def line(row: str, config: dict[str, Any], runs: list[dict[str, Any]], full: list[dict[str, Any]], looks: int) -> str:
    """One row of the table."""
    theirs = "; ".join(figure(result) for result in config["seed_results"])
    verdicts = [verdict([run["test"] for run in runs], result) for result in config["seed_results"]]
    means = {split: over_seeds([run[split] for run in runs]) for split in ("validation", "test", "test decoded")}
    cells = [
        row, str(config["samples"]), figure(means["validation"]), figure(means["test"]),
        ", ".join(f"{100 * run['test']['mean']:.1f}" for run in runs), theirs, "; ".join(verdicts),
        f"{100 * full[-1]['runs'][0]['test']['mean']:.1f}" if full else "–", figure(means["test decoded"]),
        f"{statistics.mean(run['minutes'] for run in runs):.0f}", str(looks),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def over_seeds(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over distillation seeds, and their mean deviation over networks where a set was scored on several."""
    deviations = [score["std"] for score in scores if score.get("std") is not None]
    mean = statistics.mean(score["mean"] for score in scores)
    return {"mean": mean, "std": statistics.mean(deviations) if deviations else None}


def figure(result: dict[str, Any]) -> str:
    """Mean ± standard deviation over networks, or one accuracy."""
    mean = f"{100 * result['mean']:.1f}"
    return f"{mean} ± {100 * result['std']:.1f}" if result.get("std") is not None else mean


def verdict(ours: list[dict[str, Any]], theirs: dict[str, Any]) -> str:
    """Whether the mean of our seeds is above theirs by two standard errors of the difference."""
    examples = ours[0]["examples"]
    difference = over_seeds(ours)["mean"] - theirs["mean"]
    error = math.hypot(error_over_seeds(ours), standard_error(theirs, examples))
    if abs(difference) <= 2 * error:
        return "not distinguished"
    return "higher" if difference > 0 else "lower"


def error_over_seeds(scores: list[dict[str, Any]]) -> float:
    """Of the mean of several distillation seeds.

    Seeds vary, and known networks share the test split's examples: that error does not shrink with more seeds. Networks
    drawn afresh give a lower bound, should three seeds agree by chance.
    """
    one = statistics.mean(standard_error(score, score["examples"]) for score in scores)
    if len(scores) == 1:
        return one
    spread = statistics.stdev(score["mean"] for score in scores) / math.sqrt(len(scores))
    if scores[0].get("std") is None:
        return math.hypot(spread, one)
    return max(spread, one / math.sqrt(len(scores)))


def standard_error(result: dict[str, Any], examples: int) -> float:
    """Of a mean over networks, or of one network's share of right answers."""
    if result.get("std") is not None:
        return float(result["std"] / math.sqrt(result["n"]))
    return math.sqrt(result["mean"] * (1 - result["mean"]) / examples)


if __name__ == "__main__":
    sys.exit(main())
