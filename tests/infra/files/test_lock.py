"""Locks end with their process. Too little free disk space is reported with what needs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import InfraError, RunLocked
from infra.files.lock import FileLock, require_free_disk, run_lock

HOLDER = """
import sys, time
from pathlib import Path
from infra.files.lock import run_lock
with run_lock(Path(sys.argv[1]), "street"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_running_federation_is_refused_and_freed_by_sigkill(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = pytest.raises(RunLocked, match=rf"street: already running in process {holder.pid}\b")
        with refused, run_lock(tmp_path, "street"):
            pass
        with run_lock(tmp_path, "other"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with run_lock(tmp_path, "street"):
        pass


def test_two_objects_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")
    assert first.acquire()
    assert not second.acquire(timeout=0.1)
    assert second.holder() == os.getpid()
    first.release()
    assert second.acquire()
    second.release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    assert lock.acquire()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read, 1)  # the child lives until the parent has released the lock
        os._exit(0)
    try:
        lock.release()
        assert lock.acquire(timeout=5.0)  # the child drops its copy just after the fork
        lock.release()
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_too_little_free_disk_space_names_what_needs_it(tmp_path: Path) -> None:
    require_free_disk(tmp_path / "not" / "there" / "yet", 0, "a run")
    with pytest.raises(InfraError, match=r"a run: \d+ MB free under .*new.*at least 1000000000000 MB"):
        require_free_disk(tmp_path / "new", 10**12, "a run")
