"""Names of federations from the names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.commands.arguments import choose_spec, default_name
from tasks.spec.base import check_name
from tasks.spec.names import name_of_file


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("yards.yaml", "yards"),
        ("my.spec_2-.yaml", "my.spec_2-"),  # valid names stay unchanged
        ("my spec.yaml", "my-spec"),
        ("Übersicht (2).yaml", "Ubersicht-2"),
        ("[b]a?b#c%20:d[b].yaml", "b-a-b-c-20-d-b"),
        (" . .yaml", "federation"),
        ("街.yml", "federation"),
        ("-x.json", "x"),
        ("a\nb.yaml", "a-b"),
        (f"{'y' * 200}.yaml", "y" * 70),
        (f"{'ä ' * 100}.yaml", ("a-" * 35).rstrip("-")),
    ],
)
def test_a_file_with_any_name_gives_a_valid_federation_name(file: str, name: str, tmp_path: Path) -> None:
    assert name_of_file(Path(file)) == name
    if len(file.encode()) < 250:
        path = tmp_path / file
        path.write_text("max_rounds: 3\n")
        base, spec = choose_spec(str(path), {})
        pooled = spec.model_copy(update={"data": spec.data.model_copy(update={"pooled": True})})
        for each in (spec, pooled):
            check_name(default_name(base, each), source="name")
