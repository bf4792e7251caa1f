"""``fedbench run --centralised``: its default name, its description, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.commands.arguments import default_name
from flows.views.tables import describe
from tasks.spec.presets import preset
from tasks.spec.references import twin
from tests.flows.command import fedbench


def test_a_twin_has_its_own_name_and_is_described_as_centralised() -> None:
    spec = preset("smoke")
    centralised = twin(spec)
    assert default_name("smoke", spec) == f"smoke-{spec.digest[:8]}"
    assert default_name("smoke", centralised) == f"smoke-{centralised.digest[:8]}-centralised"
    assert " · 5 clients · " in describe(spec)
    assert " · centralised · " in describe(centralised)


def test_an_already_centralised_specification_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path / "home"))
    result = fedbench("run", "smoke", "-s", "data.pooled=true", "--centralised")
    assert result.exit_code == 2
    assert "data.pooled: expected a federation of devices, found one that is centralised already" in result.output
    assert not (tmp_path / "home").exists()
