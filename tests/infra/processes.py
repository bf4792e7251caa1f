"""Processes of services: the members of a session, and a service whose server is a child of its command."""

from __future__ import annotations

import os
import sys

import psutil

from infra.servers.s3 import S3Service
from tests.waiting import gone


class WithChildren(S3Service):
    """A service whose command starts a child that answers, like MLflow's server."""

    has_children = True

    def command(self, port: int) -> list[str]:
        script = "import subprocess, sys; subprocess.call(sys.argv[1:])"
        return [sys.executable, "-c", script, *super().command(port)]


def session(leader: int) -> list[int]:
    """Return the living processes in the session of ``leader``. A service's processes are one session and one group."""
    members = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and not gone(pid):
                members.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members
