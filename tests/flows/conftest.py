"""Fixtures for the tests of flows: a name, settings and an environment for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from infra.settings import Settings
from infra.settings_groups import S3Settings


@pytest.fixture
def own_name(request: pytest.FixtureRequest) -> str:
    """Return the test's name with all other characters than letters and digits replaced. It is unique in its file."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture
def own_prefix(request: pytest.FixtureRequest, own_name: str) -> str:
    """Return a prefix of keys that no other test uses: the tests of a session share one bucket."""
    return f"{request.node.path.stem}/{own_name}"


@pytest.fixture
def settings(tmp_path: Path, s3_settings: S3Settings, own_prefix: str) -> Settings:
    """Return settings with a home and a prefix of the store for this test alone."""
    return Settings(home=tmp_path, s3=s3_settings.model_copy(update={"prefix": own_prefix}))


@pytest.fixture
def command_settings(s3_home: Path, own_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings of the session's store with a prefix for this test. Commands that the test runs use them too."""
    monkeypatch.setenv("FEDBENCH_HOME", str(s3_home))
    monkeypatch.setenv("FEDBENCH_S3__PREFIX", own_prefix)
    return Settings(home=s3_home, s3=S3Settings(prefix=own_prefix))


@pytest.fixture
def own_environment() -> Iterator[None]:
    """Undo what commands change in this process's environment."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the homes of the test file."""
    return tmp_path_factory.mktemp("home")
