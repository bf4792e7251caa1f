"""``make quick``: check style and types, and run the tests nearest to the changed files, in half a minute.

    python -m tests.quick [--since COMMIT] [--seconds 24]

Changed files are those that differ from ``COMMIT`` (by default the last commit, or the one before it if nothing
differs). The tests are, in this order: changed test files; test files named after a changed module; test files that
import one. A few tests of the whole layout come last. Tests that do not fit into the time are left out; the last line
gives their number.
"""

from __future__ import annotations

import argparse
import ast
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SECONDS = 24.0  # until the tests stop; style and types are checked meanwhile
MOST_FILES = 20  # collecting a file takes up to a second, for its imports
# Tests of a few seconds that any change may break.
ALWAYS = ("tests/test_pages.py", "tests/tasks/spec/test_digests_held.py", "tests/tasks/test_core_imports.py")
CHECKS = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))


def changed(since: str | None) -> list[str]:
    """Return the paths that differ from ``since``, and untracked files."""
    fresh = _git("ls-files", "--others", "--exclude-standard")
    if since is not None:
        return _git("diff", "--name-only", since) + fresh
    return (_git("diff", "--name-only", "HEAD") + fresh) or _git("diff", "--name-only", "HEAD~1")


def _git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def nearest(paths: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return the unit test files for changed ``paths``, nearest first. Paths are relative to ``root``."""
    paths = [path for path in paths if path.endswith(".py")]
    modules = {module_of(path) for path in paths}
    ranked: dict[str, tuple[int, str]] = {}
    for file in sorted((root / "tests").rglob("test_*.py")):
        path = file.relative_to(root).as_posix()
        if path.startswith(("tests/integration/", "tests/benchmarks/")):
            continue
        if path in paths:
            rank = 0
        elif _subject(path) in modules:
            rank = 1
        elif modules & _imported(file):
            rank = 2
        else:
            continue
        ranked[path] = (rank, path)
    return sorted(ranked, key=ranked.__getitem__)


def module_of(path: str) -> str:
    """Return the module of a path: ``tasks.data.coco`` for ``tasks/data/coco.py``."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _subject(path: str) -> str:
    """Return the module that the test file ``path`` is named after, even if it does not exist."""
    return module_of(path.removeprefix("tests/")).replace(".test_", ".").removeprefix("test_")


def _imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


class Limit:
    """A pytest plugin that runs the tests in the order of their files and stops when the time is over."""

    def __init__(self, files: Sequence[str], seconds: float) -> None:
        self._rank = {str(ROOT / file): rank for rank, file in enumerate(files)}
        self._deadline = time.monotonic() + seconds
        self._session: pytest.Session | None = None
        self.collected = self.ran = 0
        self.is_over = False

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session
        signal.signal(signal.SIGALRM, self._stop)
        signal.setitimer(signal.ITIMER_REAL, max(self._deadline - time.monotonic(), 0.1))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._rank.get(str(item.path), len(self._rank)))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected = len(session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "teardown"

    def pytest_sessionfinish(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.is_over = True
        failed = self._session is not None and self._session.testsfailed
        pytest.exit("the time is over", returncode=1 if failed else 0)


def main() -> int:
    """Run the checks and the tests. Return 0 if none failed."""
    parser = argparse.ArgumentParser(prog="make quick", description="Style, types and the nearest tests.")
    parser.add_argument("--since", metavar="COMMIT", help="compare with this commit instead of the last one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="when to stop testing (%(default)s)")
    options = parser.parse_args()
    began = time.monotonic()
    found = [file for file in nearest(changed(options.since)) if file not in ALWAYS]
    files = [*found[: MOST_FILES - len(ALWAYS)], *ALWAYS]
    limit = Limit(files, options.seconds - (time.monotonic() - began))
    unit = ["-q", "-m", "not integration and not benchmark and not slow", "-p", "no:cacheprovider"]
    with ThreadPoolExecutor(1) as beside:
        checks = beside.submit(run_checks)
        tests = pytest.main([*unit, *(str(ROOT / file) for file in files)], plugins=[limit])
        clean, text = checks.result()
    print(text, end="")
    left = [f"{limit.collected - limit.ran} of {limit.collected} tests"] if limit.is_over else []
    left += [f"{len(found) + len(ALWAYS) - len(files)} test files"] if len(found) + len(ALWAYS) > len(files) else []
    print(f"{time.monotonic() - began:.0f} s; left out: {' and '.join(left) or 'nothing near'}; make unit runs all")
    return int(not clean or tests not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED))


def run_checks() -> tuple[bool, str]:
    """Run all :data:`CHECKS`. Return whether all passed, and their output."""
    clean, text = True, ""
    for command, *arguments in CHECKS:
        done = subprocess.run([BIN / command, *arguments], cwd=ROOT, capture_output=True, text=True)
        clean = clean and done.returncode == 0
        text += f"{' '.join((command, *arguments))}: {done.stdout}{done.stderr}"
    return clean, text


if __name__ == "__main__":
    sys.exit(main())
