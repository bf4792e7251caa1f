"""Durations: what the options accept, and what Slurm prints."""

from __future__ import annotations

import pytest

from infra.errors import SettingsError
from infra.slurm.durations import printed_limit, read_duration, written


@pytest.mark.parametrize(
    ("text", "seconds"), [("8:00:00", 28800), ("0:00:30", 30), ("100:00:01", 360001), ("2-01:00:00", 176400)]
)
def test_hours_minutes_and_seconds_are_read(text: str, seconds: int) -> None:
    assert read_duration(text, "--time") == seconds


@pytest.mark.parametrize(
    "text", ["", "8", "8:00", "0:60:00", "0:00:61", "1h", "-1:00:00", "1:0:0", "8:00:00x", "٨:٠٠:٠٠"]
)
def test_other_forms_are_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--lead: expected H:MM:SS, as in 8:00:00, or D-HH:MM:SS, found "):
        read_duration(text, "--lead")


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="--idle: expected more than zero, found 0:00:00"):
        read_duration("0:00:00", "--idle")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30:00", 1800), ("1:00:00", 3600), ("1-00:00:00", 86400), ("infinite", None), ("n/a", None), ("UNLIMITED", None)],
)
def test_limits_are_read_as_slurm_prints_them(text: str, seconds: int | None) -> None:
    assert printed_limit(text) == seconds


def test_seconds_are_written_for_slurm() -> None:
    assert [written(seconds) for seconds in (30, 3661, 360000)] == ["0:00:30", "1:01:01", "100:00:00"]
