"""Every command with an unusable home or folder prints one line with the error, and exits 2 without a traceback."""

from __future__ import annotations

import os
import shlex
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.app import main
from flows.cli.shared import home_option
from infra.settings import Settings

# The arguments of each command. Their files and runs need not exist, because home and folder are checked first.
COMMANDS = {
    "run": ["run", "smoke"],
    "resume": ["resume", "x"],
    "show": ["show", "x"],
    "list": ["list"],
    "compare": ["compare", "a", "b"],
    "evaluate": ["evaluate", "x"],
    "predict": ["predict", "x", "x.jpg"],
    "save-model": ["save-model", "x", "x.safetensors"],
    "register": ["register", "x"],
    "verify": ["verify", "x"],
    "serve": ["serve", "x"],
    "ui": ["ui", "x"],
    "up": ["up"],
    "down": ["down"],
    "status": ["status"],
    "logs": ["logs"],
    "deploy": ["deploy"],
    "accept": ["accept", "x"],
    "silo-policy": ["silo-policy", "p", "--client", "1"],
    "clean": ["clean"],
    "clean --apply": ["clean", "--apply"],
    "remove": ["remove", "x", "--yes"],
    "suite run": ["suite", "run", "smoke"],
    "suite show": ["suite", "show", "x"],
    "suite report": ["suite", "report", "x"],
    "suite list": ["suite", "list"],
    "suite export": ["suite", "export", "x", "x.json"],
    "suite import": ["suite", "import", "x.json"],
    "data check": ["data", "check", "smoke"],
    "data make": ["data", "make", "made"],
}
# Commands that only read the home, or need none.
WRITE_NOTHING = {"down", "status", "logs", "silo-policy", "deploy"}

every_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what commands change in this process's environment. The working folder is the test's own."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command that exits 2 with one line of output. Return that line."""
    monkeypatch.setattr(sys, "argv", ["fedbench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == 2, captured
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


@every_command
@pytest.mark.parametrize("below", [False, True], ids=["file", "below a file"])
def test_a_home_that_is_a_file_is_refused(
    command: str, below: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    home = file / "home" if below else file
    monkeypatch.setenv("FEDBENCH_HOME", str(home))
    line = refused(COMMANDS[command], capsys, monkeypatch)
    assert line == f"error: home: expected a folder, found a file{' above it' if below else ''}: {home}"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where even root cannot make a folder")
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WRITE_NOTHING))
def test_a_home_that_cannot_be_made_is_refused(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", "/proc/x")
    line = refused(COMMANDS[command], capsys, monkeypatch)
    assert line.startswith("error: home: /proc/x cannot be made: No such file or directory; expected a folder of your")


@every_command
def test_a_removed_working_folder_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    line = refused([*COMMANDS[command], "--home", "home"], capsys, monkeypatch)
    assert line.startswith("error: expected a working folder that exists, found one that was removed")
    monkeypatch.chdir(tmp_path)


VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")


@pytest.mark.parametrize(
    ("command", "variable"),
    [*((command, "SSL_CERT_FILE") for command in COMMANDS), *(("list", variable) for variable in VARIABLES[1:])],
)
def test_missing_certificates_are_refused_for_servers_over_tls(
    command: str, variable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("HOME", str(tmp_path / "home")),
        ("PREFECT_API_URL", "https://prefect.example/api"),
        ("MLFLOW_TRACKING_URI", "https://mlflow.example"),
        ("S3__ENDPOINT", "https://s3.example"),
    ):
        monkeypatch.setenv(f"FEDBENCH_{name}", value)
    monkeypatch.setenv(variable, "/no/such/file")
    line = refused(COMMANDS[command], capsys, monkeypatch)
    assert line == f"error: {variable}: expected a file of certificates (PEM), found no such file: /no/such/file"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where even root cannot make a folder")
def test_counts_are_printed_even_if_the_picture_has_no_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = [item for field in ("train_images=40", "test_images=5", "width=64", "height=64") for item in ("-s", field)]
    made = tmp_path / "made set"
    monkeypatch.setattr(sys, "argv", ["fedbench", "data", "make", str(made), "--home", str(tmp_path / "h"), *fields])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert f"written: {shlex.quote(str(made))}" in capsys.readouterr().out.splitlines()
    monkeypatch.setattr(sys, "argv", ["fedbench", "data", "check", str(made), "--home", "/proc/x"])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == 0
    assert "40 training images" in captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("warning: the picture ")
    assert "failed: home: /proc/x cannot be made" in line


def test_the_home_in_a_printed_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    home = tmp_path / "my [b]home[/b] 'x'"
    assert shlex.split(home_option(Settings(home=home))) == ["--home", str(home)]


def test_variables_with_unusable_certificates_are_refused_over_tls_only(tmp_path: Path) -> None:
    from infra.environment.certificates import use_certificates
    from infra.errors import SettingsError

    text, folder, good = tmp_path / "text", tmp_path / "folder", ssl.get_default_verify_paths().openssl_cafile
    text.write_text("no certificate")
    folder.mkdir()
    environment = {"SSL_CERT_FILE": str(text), "REQUESTS_CA_BUNDLE": str(folder), "AWS_CA_BUNDLE": ""}
    with pytest.raises(SettingsError, match=r"^SSL_CERT_FILE: .*, found a file without certificates: "):
        use_certificates(dict(environment), over_tls=True)
    with pytest.raises(SettingsError, match=r"^SSL_CERT_FILE: .*, found a folder: "):
        use_certificates(environment | {"SSL_CERT_FILE": str(folder)}, over_tls=True)
    use_certificates(alone := {"SSL_CERT_FILE": str(folder)}, over_tls=False)
    assert alone == {}
    use_certificates(environment, over_tls=False)
    assert environment == {"REQUESTS_CA_BUNDLE": str(folder), "AWS_CA_BUNDLE": ""}
    if Path(good).exists():
        use_certificates(kept := {"SSL_CERT_FILE": good}, over_tls=True)
        assert kept == {"SSL_CERT_FILE": good}
