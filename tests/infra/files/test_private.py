"""Only its owner can enter the home, whatever the umask and the folder's earlier rights."""

import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.files.private import narrow, private_home


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_home_is_private_and_nobody_can_rename_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        private_home(tmp_path / "above" / "further" / "home")
    finally:
        os.umask(before)
    assert rights(tmp_path / "above" / "further" / "home") == 0o700
    for folder in (tmp_path / "above", tmp_path / "above" / "further"):
        assert rights(folder) == 0o755 & ~umask


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o750, 0o701])
def test_a_home_with_wider_rights_is_narrowed_with_one_warning(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    with caplog.at_level(logging.WARNING):
        private_home(home)
        private_home(home)
    assert rights(home) == 0o700
    assert caplog.messages == [f"{home}: others could enter it ({mode:04o}); from now on only you can (0700)"]


def test_checking_a_missing_home_does_not_create_it(tmp_path: Path) -> None:
    assert narrow(tmp_path / "home") is None
    assert not (tmp_path / "home").exists()


def test_a_file_as_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(SettingsError, match="home: expected a folder, found a file"):
        private_home(tmp_path / "home")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_another_users_home_is_refused() -> None:
    above = Path(tempfile.mkdtemp(prefix="fedbench-"))  # other users cannot enter pytest's folders
    try:
        _refuse_foreign(above)
    finally:
        shutil.rmtree(above)


def _refuse_foreign(above: Path) -> None:
    above.chmod(0o755)
    home = above / "home"
    home.mkdir()
    home.chmod(0o777)
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom infra.files.private import private_home\n"
        "os.setgid(65534), os.setuid(65534)\nprivate_home(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(home)], capture_output=True, text=True, check=False)
    assert "SettingsError: home: expected a folder of your own (user 65534), found one of user 0" in done.stderr
    assert rights(home) == 0o777


@pytest.mark.skipif(os.getuid() != 0, reason="only root can enter another user's private folder")
@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_root_gets_a_warning_about_another_users_home(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    os.chown(home, 65534, 65534)
    assert narrow(home) == f"{home}: user 65534 owns it, and can read and change all in it"
    assert rights(home) == 0o700
