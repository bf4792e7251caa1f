"""Fixtures for all tests, among them a real object store that starts once, when a test first requests it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Remove the user's own settings, so that they do not change the results of tests. Variables that are meant for the
# tests get another prefix first: pytest-xdist's worker processes import this file again, and inherit only those.
FOR_TESTS = "OF_FEDBENCH_TESTS_"
for _name in [name for name in os.environ if name.startswith("FEDBENCH_")]:
    _value = os.environ.pop(_name)
    if _name in ("FEDBENCH_STREET_DIR", "FEDBENCH_SCREENSHOTS", "FEDBENCH_TEST_KILLS", "FEDBENCH_FLOWER_VENV"):
        os.environ[FOR_TESTS + _name.removeprefix("FEDBENCH_")] = _value
STREET_DIR = os.environ.get(f"{FOR_TESTS}STREET_DIR")
SCREENSHOTS = os.environ.get(f"{FOR_TESTS}SCREENSHOTS")

# Threads of OpenMP wait asleep. By default they wait in a loop, which takes the cores from the other test processes.
# The library reads this when torch loads it, and the commands that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Test files that use the session's fixture `undisturbed`, directly or through another fixture, in scopes of about equal
# length. Each scope makes the run anew, half a minute, so that the scopes can run at the same time.
UNDISTURBED_RUN_FILES = {
    "test_kill.py": "undisturbed, extended",
    "test_run.py": "undisturbed, extended",
    "test_serving.py": "undisturbed, extended",
    "test_going_back.py": "undisturbed, extended",
    "test_cleaning.py": "undisturbed",
    "test_interrupt.py": "undisturbed",
    "test_model_commands.py": "undisturbed",
    "test_failing_client.py": "undisturbed, failures",
    "test_failing_views.py": "undisturbed, failures",
    "test_full_disk.py": "undisturbed, failures",
}

# The slowest scopes, as `scope` names them, slowest first. They start first, so that none runs on alone at the end.
LONGEST = (
    "undisturbed, extended",
    "undisturbed",
    "tests/integration/test_suite.py",
    "tests/integration/test_suite_of_methods.py",
    "tests/integration/test_residents.py",
    "undisturbed, failures",
    "tests/integration/test_stack.py",
    "tests/integration/test_two_machines.py",
    "tests/tasks/test_fuzz_replies.py",
    "tests/integration/test_deploy.py",
    "tests/integration/test_worker.py",
    "tests/integration/test_routes.py",
    "tests/integration/test_planted.py",
    "tests/integration/test_two_homes.py",
    "tests/integration/test_hostile_environment.py",
)

if TYPE_CHECKING:
    from infra.settings_groups import S3Settings
    from infra.store.objects import ObjectStore


def scope(nodeid: str) -> str:
    """Return the scope of a test: its file, or one of several files. All tests of a scope run in one process."""
    file = Path(nodeid.partition("::")[0])
    return UNDISTURBED_RUN_FILES.get(file.name, str(file)) if file.parent.name == "integration" else str(file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests: first the scopes of :data:`LONGEST`, then the scopes with the most tests."""
    tests = Counter(scope(item.nodeid) for item in items)

    def order(item: pytest.Item) -> tuple[int, int]:
        name = scope(item.nodeid)
        place = LONGEST.index(name) if name in LONGEST else len(LONGEST)
        return place, -tests[name]

    items.sort(key=order)


def pytest_collection_finish() -> None:
    """Give torch one thread in this process, if a test file has imported it: small tensors gain nothing from more."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler that distributes whole scopes, in the order of their tests."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # True would start with the scopes of most tests, however short they are
    return ByFixtures(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Escape lone surrogates in a test's captured output: xdist cannot send them to the reporting process."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def street_dir() -> Path:
    """Return the folder of the real Federated Street. Skip the test if it is not set."""
    if not STREET_DIR:
        pytest.skip("FEDBENCH_STREET_DIR is not set: the real Federated Street is not at hand")
    return Path(STREET_DIR)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Give torch one thread during the file's tests, also if it is first imported by them.

    Restore the number afterwards, also if a turn in this process has changed it.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for screenshots: the value of ``FEDBENCH_SCREENSHOTS``, else a temporary one."""
    folder = Path(SCREENSHOTS).absolute() if SCREENSHOTS else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def s3_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the home of the session's object store. Its buckets are the folders of ``<home>/s3``."""
    return tmp_path_factory.mktemp("s3-home")


@pytest.fixture(scope="session")
def s3_settings(s3_home: Path) -> Iterator[S3Settings]:
    """Start an embedded rclone, create its bucket, and yield its resolved settings."""
    from infra.settings import Settings
    from infra.stack.embedded import EmbeddedServices
    from infra.store.objects import ObjectStore

    with EmbeddedServices(Settings(home=s3_home), prefect=False) as services:
        resolved = services.s3_endpoint()
        ObjectStore(resolved).ensure_bucket()
        yield resolved


@pytest.fixture(scope="session")
def object_store(s3_settings: S3Settings) -> ObjectStore:
    """Return a store in that bucket. The whole session shares it, so each test must use its own keys."""
    from infra.store.objects import ObjectStore

    return ObjectStore(s3_settings, outage_seconds=10.0)
