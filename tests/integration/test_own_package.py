"""The example package of the documentation: it is built and installed, its tests pass, and a run uses its kinds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.store.layout import FederationLayout
from tests.integration.homes import TINY, Home

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "fedbench-example"
SPEC = {
    **TINY,
    "max_rounds": 2,
    "detector": {"kind": "tiny-grid", "width": 64, "height": 64},
    "strategy": {"kind": "fedavg-clipped", "max_norm": 0.01},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package and install it into a folder. Return the folder."""
    source = tmp_path_factory.mktemp("example") / "source"  # the build would leave files in the checkout
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = source.with_name("installed")
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("uv")), "pip", "install", "--offline", "--no-deps",
            "--no-build-isolation", "--no-cache", "--python", sys.executable, "--target", str(target), str(source),
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (target / "fedbench_example-1.0.0.dist-info" / "entry_points.txt").is_file()
    return target


def with_package(environment: dict[str, str], installed: Path) -> dict[str, str]:
    return {**environment, "PYTHONPATH": os.pathsep.join((str(installed), str(ROOT)))}


def test_the_tests_of_the_package_pass(installed: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    done = subprocess.run(
        command, cwd=installed, env=with_package(dict(os.environ), installed), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_run_uses_the_method_and_the_detector(shared_home: Home, installed: Path) -> None:
    spec = shared_home.spec_file(SPEC, "own")
    environment = with_package(shared_home.environment(), installed)
    done = shared_home.run("run", spec, "--name", "own", "--slots", 2, environment=environment)
    assert done.returncode == 0, done.stdout
    assert [record.round for record in shared_home.records("own")] == [0, 1, 2]
    stored = shared_home.document(FederationLayout("federations", "own").spec)
    assert stored["strategy"] == {"kind": "fedavg-clipped", "weights": "images", "max_norm": 0.01}


def test_without_the_package_the_error_says_that_it_may_be_missing(shared_home: Home) -> None:
    done = shared_home.run("run", shared_home.spec_file(SPEC, "missing"), "--name", "missing")
    assert done.returncode == 2, done.stdout
    text = " ".join(done.stdout.split())
    for field, kind, group in (
        ("strategy", "fedavg-clipped", "fedbench.strategies"), ("detector", "tiny-grid", "fedbench.detectors"),
    ):  # fmt: skip
        assert f"{field}.kind: expected one of: " in text
        assert f"found '{kind}'; a kind of another package needs that package installed here" in text
        assert f"(entry point group {group})" in text
