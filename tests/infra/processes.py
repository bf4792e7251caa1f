"""Processes of services: waited for, counted, and one with a child of its own."""

from __future__ import annotations

import os
import sys

import psutil

from infra.servers.s3 import S3Service
from tests.waiting import gone


class WithChildren(S3Service):
    """A command whose own child answers, like MLflow's server."""

    has_children = True

    def command(self, port: int) -> list[str]:
        script = "import subprocess, sys; subprocess.call(sys.argv[1:])"
        return [sys.executable, "-c", script, *super().command(port)]


def session(leader: int) -> list[int]:
    """Living processes of the session that ``leader`` led; those of a service, whose session is its group too."""
    members = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and not gone(pid):
                members.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members
