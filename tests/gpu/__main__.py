"""Run the checks of turns on a GPU without pytest, and print a line for each.

    python -m tests.gpu                 # all checks, on the GPU
    python -m tests.gpu --only sync     # those with this text in their name
    python -m tests.gpu --device cpu    # those that also run on a CPU

Exit code 1 if a check failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from tests.gpu.checks import CHECKS, Check, Skipped


def run(check: Check, device: str) -> str:
    """Run the check in an empty folder. Return its line: passed, skipped or FAILED."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            check.run(device, Path(folder))
            outcome = "passed"
        except Skipped as reason:
            return f"skipped {check.name}: {reason}"
        except Exception as error:
            traceback.print_exc()
            outcome = f"FAILED ({type(error).__name__})"
    return f"{outcome} {check.name} {time.perf_counter() - started:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", help="a text in the names of the checks to run")
    parser.add_argument("--list", action="store_true", help="print the names, and run nothing")
    options = parser.parse_args()
    chosen = [check for check in CHECKS if options.only in check.name]
    if options.device == "cpu":
        chosen = [check for check in chosen if check.anywhere]
    if options.list:
        print("\n".join(check.name for check in chosen))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch finds no CUDA device")
        return 2
    lines = []
    for check in chosen:
        lines.append(run(check, options.device))
        print(lines[-1], flush=True)
    failed = sum(line.startswith("FAILED") for line in lines)
    print(f"{len(lines)} checks, {failed} failed, {sum(line.startswith('skipped') for line in lines)} skipped")
    return 1 if failed or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
