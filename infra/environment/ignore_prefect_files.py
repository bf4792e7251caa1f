"""Keep Prefect from reading settings from files in the working folder, once this module is imported.

Prefect reads ``.env``, ``prefect.toml`` and ``pyproject.toml`` there while it is imported, and again for every copy of
its settings. No option turns that off, and a file that is not TOML ends the process. So this module changes how
pydantic-settings reads files, for Prefect's classes alone. Slots import it before any other module.
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
