"""Podman for the tests: a store of its own, a base image from the Debian mirror of this machine, and compose commands.

All that it makes is in one folder: images, volumes, networks. :meth:`Podman.remove` ends the containers and removes it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("podman", "runc", "debootstrap", "podman-compose", "iptables", "catatonit")
NETWORK_PROGRAMS = (Path("/usr/lib/podman/netavark"), Path("/usr/lib/podman/aardvark-dns"))
PACKAGES = "podman runc netavark aardvark-dns iptables catatonit podman-compose debootstrap"
# What the shipped Dockerfile wants of its base, besides apt.
BASE_PACKAGES = ("python3", "python3-venv")
# The files that the image is built from, and those beside them that compose.yaml names.
SOURCES = (
    "requirements.txt", "requirements-setup.txt", "pyproject.toml", "README.md", "LICENSE", "fedbench.py",
    "flows", "infra", "tasks",
)  # fmt: skip


def why_not() -> str | None:
    """Return what is missing here to run containers. None: nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "containers with a debootstrap base need root on Linux"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    missing += [path.name for path in NETWORK_PROGRAMS if not path.exists()]
    if missing:
        return f"needs {', '.join(missing)}: on Debian, apt install {PACKAGES}"
    if mirror() is None:
        return "apt's configuration names no Debian mirror with the component main of this release"
    return None


def mirror() -> tuple[str, str] | None:
    """Return the address of the Debian mirror that apt uses, and this machine's release. None: it uses none."""
    if shutil.which("apt-get") is None:
        return None
    release = platform.freedesktop_os_release().get("VERSION_CODENAME")
    form = "$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(ORIGIN)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in listed.stdout.splitlines():
        address, *rest = line.split("|")
        if rest == [release, "main", "Debian"]:
            return address, str(release)
    return None


def limits() -> list[str]:
    """Return limits for containers that are not above this process's: without a capability, runc cannot raise them.

    Podman lowers its own limit of processes to the kernel's highest process id, so that bounds it too.
    """
    most_processes = int(Path("/proc/sys/kernel/pid_max").read_text())
    found = []
    for name, kind, most in (
        ("nofile", resource.RLIMIT_NOFILE, 1_048_576),
        ("nproc", resource.RLIMIT_NPROC, most_processes),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(hard, most)
        found.append(f"{name}={limit}:{limit}")
    return found


def checked(
    command: Sequence[object], *, environment: Mapping[str, str] | None = None, folder: Path | None = None,
    timeout: float = 600.0,
) -> str:  # fmt: skip
    """Run the command. Return its standard output. Fail with its whole output if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


@dataclass(frozen=True)
class Podman:
    """Podman with runc, whose images, volumes and networks are in ``folder``."""

    folder: Path

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of Podman's commands, without this process's services and settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        engine, storage = self.folder / "containers.conf", self.folder / "storage.conf"
        engine.write_text(
            "[containers]\n"
            f"default_ulimits = {json.dumps(limits())}\n"
            "[engine]\n"
            'runtime = "runc"\n'  # crun refuses hybrid cgroups
            'cgroup_manager = "cgroupfs"\n'
            'events_logger = "file"\n'
            f'tmp_dir = "{self.folder}/libpod"\n'
            "[network]\n"
            'network_backend = "netavark"\n'
            f'network_config_dir = "{self.folder}/networks"\n'
        )
        storage.write_text(
            "[storage]\n"
            f'driver = "{self._driver()}"\n'
            f'graphroot = "{self.folder}/store"\n'
            f'runroot = "{self.folder}/run"\n'
        )
        foreign = ("FEDBENCH_", "PREFECT_", "MLFLOW_", "RCLONE_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return kept | {
            "CONTAINERS_CONF": str(engine),
            "CONTAINERS_STORAGE_CONF": str(storage),
            # One layer for the whole image: the driver vfs would copy all of it for each further one.
            "BUILDAH_LAYERS": "false",
            # Without systemd nothing runs health checks at intervals, and Podman would report that as an error.
            **({} if Path("/run/systemd/system").exists() else {"DISABLE_HC_SYSTEMD": "true"}),
        }

    def _driver(self) -> str:
        """Return ``overlay`` if the folder's file system can hold an overlay, else ``vfs``."""
        trial = self.folder / "trial"
        for name in ("lower", "upper", "work", "merged"):
            (trial / name).mkdir(parents=True)
        options = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, trial / "merged"], capture_output=True, check=False
        )
        if mounted.returncode == 0:
            subprocess.run(["umount", trial / "merged"], check=True)
        shutil.rmtree(trial)
        return "overlay" if mounted.returncode == 0 else "vfs"

    def run(self, *arguments: object, timeout: float = 600.0) -> str:
        """Run ``podman``. Return its standard output. Fail if it fails."""
        return checked(["podman", *arguments], environment=self.environment, timeout=timeout)

    def succeeds(self, *arguments: object) -> bool:
        command = ["podman", *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return done.returncode == 0

    def inspect(self, container: str) -> dict[str, Any]:
        (found,) = json.loads(self.run("inspect", "--type", "container", container))
        document: dict[str, Any] = found
        return document

    def make_base(self, image: str) -> str:
        """Make a base image of this machine's Debian release with debootstrap. Return its Python, as ``3.11``."""
        found = mirror()
        assert found is not None
        address, release = found
        tree = self.folder / "base"
        checked(
            ["debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", release, tree, address],
            timeout=1800,
        )
        archive = self.folder / "base.tar"
        checked(["tar", "--numeric-owner", "-C", tree, "-cf", archive, "."])
        version = "import sys; print('%d.%d' % sys.version_info[:2])"
        python = checked(["chroot", tree, "python3", "-c", version]).strip()
        shutil.rmtree(tree)
        self.run("import", archive, image)
        archive.unlink()
        return python

    def build(self, source: Path, image: str, base: str, python: str) -> None:
        """Build the shipped Dockerfile in ``source`` on ``base``, from this machine's packages, without the network.

        Packages come from the cache of uv, which this fills first, and from a folder of wheels: only this machine's own
        configuration of pip and uv says where packages are. apt has its mirror from the base.
        """
        wheels, warm = self.folder / "wheels", self.folder / "warm"
        pip = [sys.executable, "-m", "pip"]
        checked(
            [*pip, "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:",
             "--python-version", python, "--dest", wheels, "-r", source / "requirements-setup.txt"],
        )  # fmt: skip
        uv = Path(sys.executable).with_name("uv")
        cache = checked([uv, "cache", "dir"]).strip()
        # The copies are hard links where the cache is on the same file system.
        checked(
            [uv, "pip", "install", "--quiet", "--target", warm, "--python-version", python, "--no-deps",
             "--require-hashes", "-r", source / "requirements.txt"], timeout=3600,
        )  # fmt: skip
        shutil.rmtree(warm)
        self.run(
            "build", "--quiet", "--network", "host", "--file", source / "infra/compose/Dockerfile", "--tag", image,
            "--build-arg", f"BASE_IMAGE={base}",
            "--build-arg", "PIP_OPTIONS=--no-index --find-links /packages/wheels",
            "--build-arg", "UV_OPTIONS=--offline --cache-dir /packages/uv",
            "--volume", f"{wheels}:/packages/wheels:ro", "--volume", f"{cache}:/packages/uv",
            source, timeout=3600,
        )  # fmt: skip
        shutil.rmtree(wheels)

    def remove(self) -> None:
        """End all containers, and remove them, the images, volumes and networks, and the folder."""
        environment = self.environment
        for command in (["rm", "--all", "--force", "--time", "5"], ["network", "prune", "--force"]):
            subprocess.run(["podman", *command], env=environment, capture_output=True, timeout=300, check=False)
        # Mounts of the driver overlay.
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            target = line.split()[1]
            if Path(target).is_relative_to(self.folder):
                subprocess.run(["umount", "--lazy", target], capture_output=True, check=False)
        shutil.rmtree(self.folder)


def copy_sources(target: Path) -> Path:
    """Copy what the image and compose.yaml need, as a new checkout has it. Return the folder of compose.yaml."""
    ignored = shutil.ignore_patterns("__pycache__", ".env")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=ignored)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / name)
    return target / "infra" / "compose"


@dataclass(frozen=True)
class Compose:
    """``podman-compose`` on the shipped compose.yaml, in ``folder``, whose ``.env`` it reads."""

    podman: Podman
    folder: Path
    project: str

    def run(self, *arguments: object, timeout: float = 900.0) -> str:
        command = ["podman-compose", "--project-name", self.project, *arguments]
        return checked(command, environment=self.podman.environment, folder=self.folder, timeout=timeout)

    def containers(self) -> dict[str, str]:
        """Return the name of each service's container, stopped ones too."""
        labels = (f"label=io.podman.compose.project={self.project}", "{{json .Labels}}|{{.Names}}")
        listed = self.podman.run("ps", "--all", "--filter", labels[0], "--format", labels[1])
        pairs = (line.rsplit("|", 1) for line in listed.splitlines())
        return {json.loads(found)["com.docker.compose.service"]: name for found, name in pairs}

    def healthy(self) -> bool:
        """Return whether every container passes its own health check now."""
        return all(self.podman.succeeds("healthcheck", "run", name) for name in self.containers().values())

    def inside(self, service: str, *command: object, timeout: float = 600.0) -> str:
        """Run the command in the service's container. Return its output."""
        return self.podman.run("exec", self.containers()[service], *command, timeout=timeout)
