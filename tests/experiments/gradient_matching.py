"""Gradient matching against the other methods on small transformers models.

    python -m tests.experiments.gradient_matching --seeds 5 --json out.json

Two families (a Llama that reads bytes, a ViT), experts fine-tuned in three ways (held by the penalty of equation 8,
stopped early, converged). What can be tuned is tuned on validation data over 20 values each and reported on test data;
intervals are 95 % intervals of paired differences over seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

from tests.experiments.runs import FAMILIES, run_one
from tests.experiments.summary import summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one processor")
    parser.add_argument("--json", type=Path, help="write every number of every run here")
    parser.add_argument("--quick", action="store_true", help="to see that it works; the numbers mean nothing")
    given = parser.parse_args()
    began = time.perf_counter()
    seeds = range(given.first, given.first + given.seeds)
    wanted = [(name, seed, given.quick) for seed in seeds for name in reversed(FAMILIES)]
    runs: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for done in pool.imap_unordered(_one, wanted):
            runs.append(done)
            if given.json is not None:
                given.json.write_text(json.dumps(runs))
    runs.sort(key=lambda run: (run["family"], run["seed"]))
    print(summary(runs))
    print(f"\n{len(runs)} runs in {time.perf_counter() - began:.0f} s")


def _one(wanted: tuple[str, int, bool]) -> dict[str, Any]:
    name, seed, quick = wanted
    return run_one(name, seed, quick=quick)


if __name__ == "__main__":
    main()
