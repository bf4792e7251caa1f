"""Once this is imported, Prefect reads no settings from files of the working folder.

Prefect reads ``.env``, ``prefect.toml`` and ``pyproject.toml`` there while it is imported, and anew for every copy of
its settings. It has no option against that, and a file that is not TOML ends the process. So this changes how
pydantic-settings reads files, for Prefect's classes alone. Slots import this module before any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_settings.sources import ConfigFileSourceMixin, DotEnvSettingsSource


def _not_for_prefect(reader: Callable[..., Any]) -> Callable[..., Any]:
    def read(self: Any, *args: Any, **options: Any) -> Any:
        if type(self).__module__.partition(".")[0] == "prefect":
            return {}
        return reader(self, *args, **options)

    return read


for _source, _name in ((ConfigFileSourceMixin, "_read_files"), (DotEnvSettingsSource, "_read_env_files")):
    setattr(_source, _name, _not_for_prefect(getattr(_source, _name)))
