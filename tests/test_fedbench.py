"""If another project's package hides one of fedbench's, each process reports it instead of failing inside it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedbench
from tasks.code_version import PACKAGES

ROOT = Path(fedbench.__file__).parent
LOAD_COLLECTIONS = "from prefect.plugins import load_prefect_collections; load_prefect_collections()"
FIND_TYPE = "from prefect.workers.base import BaseWorker as b; print(b.get_worker_class_from_type('fedbench-gpu'))"


def run(
    *arguments: str, folder: Path, search: Path | None = None, passed: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run Python with ``arguments`` in ``folder``. It finds modules below ``search`` before all installed ones."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*([search] if search else []), *_not_installed()]))
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, pass_fds=passed)


def _not_installed() -> list[Path]:
    """Return the checkout, unless fedbench is installed and Python finds it anyway."""
    done = subprocess.run([sys.executable, "-I", "-c", "import fedbench"], capture_output=True)
    return [] if done.returncode == 0 else [ROOT]


def make_package(folder: Path, name: str) -> Path:
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the code of another project ran')\n")
    return package


def test_all_packages_are_checked() -> None:
    assert fedbench.PACKAGES == PACKAGES
    fedbench.require_own_packages()


def test_the_image_has_all_installed_packages() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == [*PACKAGES, "fedbench.py"]
    image = (ROOT / "infra" / "compose" / "Dockerfile").read_text()
    context = (ROOT / "infra" / "compose" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [word for line in image.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    for path in wheel["packages"]:
        assert path in copied
        assert f"!{path}" in context


@pytest.mark.parametrize("name", PACKAGES)
def test_the_command_names_both_packages_and_the_variable(tmp_path: Path, name: str) -> None:
    hiding = make_package(tmp_path / "theirs", name)
    done = run("-P", "-m", "fedbench", "version", folder=tmp_path, search=hiding.parent)
    assert (done.returncode, done.stdout) == (fedbench.EXIT_USAGE, "")
    assert done.stderr == (
        f"error: {hiding} hides fedbench's package {name} in {ROOT / name}: Python finds it first. "
        f"Rename it, or unset PYTHONPATH, which names {hiding.parent}\n"
    )


def test_a_module_hides_a_package_too(tmp_path: Path) -> None:
    hiding = tmp_path / "tasks.py"
    hiding.write_text("raise RuntimeError('the code of another project ran')\n")
    done = run("-m", "fedbench", "version", folder=tmp_path)
    assert done.returncode == fedbench.EXIT_USAGE
    assert f"error: {hiding} hides fedbench's package tasks" in done.stderr
    assert "Rename it, or start from another folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_packages_in_the_working_folder_do_not_disturb_the_installed_command(tmp_path: Path) -> None:
    for name in PACKAGES:
        make_package(tmp_path, name)
    done = run("-P", "-m", "fedbench", "version", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fedbench ")


def test_a_folder_that_is_no_package_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "theirs.py").touch()
    done = run("-m", "fedbench", "version", folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_prefect_prints_why_the_worker_type_is_missing(tmp_path: Path) -> None:
    hiding = make_package(tmp_path, "infra")
    done = run("-c", LOAD_COLLECTIONS, folder=tmp_path)
    assert done.returncode == 0, done.stderr  # Prefect itself still works for the other project
    assert f"'fedbench': PackageHidden: {hiding} hides fedbench's package infra" in done.stdout


def test_a_worker_may_start_beside_another_projects_package_flows(tmp_path: Path) -> None:
    make_package(tmp_path, "flows")
    done = run("-c", FIND_TYPE, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "<class 'infra.worker.gpu_worker.GpuWorker'>"


def test_a_workers_warm_process_reports_the_hidden_package_too(tmp_path: Path) -> None:
    hiding = make_package(tmp_path, "flows")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        passed = (theirs.fileno(),)
        command = ("-P", "-m", "infra.worker.fork_server", str(theirs.fileno()), "1", "flows.resident")
        done = run(*command, folder=tmp_path, search=tmp_path, passed=passed)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {hiding} hides fedbench's package flows")
    assert len(done.stderr.splitlines()) == 1
