"""Write the ``data`` block of a specification for a folder of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.spec.data import DataSpec


def data_block(spec: DataSpec) -> str:
    """Return ``spec`` as the ``data`` block of a specification in YAML.

    It has the fields that are not their defaults, and says how images come to clients in any case.
    """
    import yaml

    document = spec.model_dump(mode="json", exclude_defaults=True)
    fields: dict[str, Any] = {"kind": spec.kind}
    fields |= {key: value for key, value in document.items() if key not in fields}
    clients = getattr(spec, "clients", None)
    if clients is not None:
        fields["clients"] = {
            "kind": clients.kind,
            **clients.model_dump(mode="json", exclude={"kind"}, exclude_none=True),
        }
    text: str = yaml.safe_dump(
        {"data": fields}, default_flow_style=None, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text


def data_lines(spec: DataSpec, folder: Path, divided: bool) -> list[str]:
    """Return lines that say how ``folder`` was read, and what a specification and the settings need to read it so.

    divided: its images are divided because nothing in it names devices.
    """
    lines = []
    if divided:
        lines.append(
            f"no file in {folder} names devices: its images are divided among {len(spec.own_devices or ())} clients "
            "(IID); data.clients chooses another division"
        )
    name, root = getattr(spec, "name", spec.kind), json.dumps(str(folder.absolute()), ensure_ascii=False)
    lines.append("as it was read, for a specification:")
    lines += data_block(spec).splitlines()
    lines.append(f"and for the settings: data_roots: {{{name}: {root}}}")
    return lines
