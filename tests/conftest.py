"""Fixtures for all tests: a real object store, started once for the session, and only when a test asks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Tests must not see the settings of whoever runs them; those that need the real data set ask for `street_dir`.
# Under other names what is for the tests reaches the processes that they are shared out to.
FOR_TESTS = "OF_FEDBENCH_TESTS_"
for _name in [name for name in os.environ if name.startswith("FEDBENCH_")]:
    _value = os.environ.pop(_name)
    if _name in ("FEDBENCH_STREET_DIR", "FEDBENCH_SCREENSHOTS", "FEDBENCH_TEST_KILLS"):
        os.environ[FOR_TESTS + _name.removeprefix("FEDBENCH_")] = _value
STREET_DIR = os.environ.get(f"{FOR_TESTS}STREET_DIR")
SCREENSHOTS = os.environ.get(f"{FOR_TESTS}SCREENSHOTS")

# Files that ask for the session's fixture `undisturbed`, or for one that needs it.
OF_THE_UNDISTURBED_RUN = {
    "test_cleaning.py",
    "test_failing_client.py",
    "test_failing_views.py",
    "test_full_disk.py",
    "test_going_back.py",
    "test_interrupt.py",
    "test_kill.py",
    "test_model_commands.py",
    "test_run.py",
    "test_serving.py",
}

# What takes longest, longest first: begun first, it does not outlast all else at the end. Names are those of `scope`.
LONGEST = (
    "undisturbed",
    "tests/integration/test_suite.py",
    "tests/integration/test_residents.py",
    "tests/integration/test_stack.py",
    "tests/integration/test_two_machines.py",
    "tests/tasks/test_fuzz_replies.py",
    "tests/integration/test_deploy.py",
    "tests/integration/test_worker.py",
    "tests/infra/servers/test_routes.py",
    "tests/integration/test_planted.py",
    "tests/integration/test_two_homes.py",
    "tests/integration/test_hostile_environment.py",
)

if TYPE_CHECKING:
    from infra.settings import S3Settings
    from infra.store.objects import ObjectStore


def scope(nodeid: str) -> str:
    """Return what the test belongs to whose tests all go to one process: its file, or the undisturbed run."""
    file = Path(nodeid.partition("::")[0])
    return "undisturbed" if file.parent.name == "integration" and file.name in OF_THE_UNDISTURBED_RUN else str(file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the scopes that take longest, then those of most tests."""
    tests = Counter(scope(item.nodeid) for item in items)

    def order(item: pytest.Item) -> tuple[int, int]:
        name = scope(item.nodeid)
        place = LONGEST.index(name) if name in LONGEST else len(LONGEST)
        return place, -tests[name]

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole scopes, in the order of their tests."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # it would begin with the scopes of most tests, however short they are
    return ByFixtures(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What a test has written reaches the process that reports it: xdist sends no text with a lone surrogate."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def street_dir() -> Path:
    """Folder of the real Federated Street."""
    if not STREET_DIR:
        pytest.skip("FEDBENCH_STREET_DIR is not set: the real Federated Street is not at hand")
    return Path(STREET_DIR)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Give torch one thread during the file's tests, as small tensors gain nothing from more.

    Restore the number afterwards, also if a turn in this process has changed it.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for what a browser has shown: the one that ``FEDBENCH_SCREENSHOTS`` names, else a temporary one."""
    folder = Path(SCREENSHOTS).absolute() if SCREENSHOTS else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def s3_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of the session's object store; its buckets are the folders of ``<home>/s3``."""
    return tmp_path_factory.mktemp("s3-home")


@pytest.fixture(scope="session")
def s3_settings(s3_home: Path) -> Iterator[S3Settings]:
    """Resolved settings of an embedded rclone, its bucket made."""
    from infra.settings import Settings
    from infra.stack.embedded import EmbeddedServices
    from infra.store.objects import ObjectStore

    with EmbeddedServices(Settings(home=s3_home), prefect=False) as services:
        resolved = services.s3_endpoint()
        ObjectStore(resolved).ensure_bucket()
        yield resolved


@pytest.fixture(scope="session")
def object_store(s3_settings: S3Settings) -> ObjectStore:
    """A store in that bucket. Shared by the session: use keys of your own test."""
    from infra.store.objects import ObjectStore

    return ObjectStore(s3_settings, outage_seconds=10.0)
