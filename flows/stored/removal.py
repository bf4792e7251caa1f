"""Remove leftovers, or a whole federation, from the store and from this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.stored.names import no_such_federation
from flows.stored.runs import opened_store
from infra.errors import InfraError
from infra.leftovers.machine import remove_path
from infra.leftovers.store import Leftover, removal_steps
from infra.settings import Settings, run_folder
from infra.store.flush import flush_removal
from infra.store.holding import Subject, subject_held
from infra.store.layout import FederationLayout, federations
from infra.store.leased import LeasedStore
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout, suite_runs
from tasks.spec.base import check_name

log = logging.getLogger(__name__)


def remove_leftovers(objects: ObjectStore, leftovers: Sequence[Leftover]) -> dict[str, str]:
    """Remove ``leftovers``. Return, by key, why some could not be removed."""
    failed: dict[str, str] = {}
    keys = [leftover.key for leftover in leftovers if leftover.kind == "object"]
    try:
        failed |= objects.remove(keys)
    except InfraError as error:
        failed |= dict.fromkeys(keys, str(error))
    for leftover in leftovers:
        try:
            if leftover.kind == "upload":
                objects.abort_upload(leftover.key, leftover.upload_id)
            elif leftover.kind == "path":
                remove_path(Path(leftover.key))
        except (InfraError, OSError) as error:
            failed[leftover.key] = getattr(error, "strerror", None) or str(error)
    for leftover in leftovers:
        log.info("%s: %s (%s)", leftover.key, failed.get(leftover.key, "removed"), leftover.reason)
    return failed


def remove_federation(settings: Settings, name: str, say: Callable[[str], None] | None = None) -> tuple[int, int]:
    """Remove a federation from the store, and its run's folder. Return the number of objects removed, and their bytes.

    MLflow's run, the registered model and Prefect's runs stay.

    say: called with a line when the federation's lease must be waited for.

    Raises:
        SpecError: there is no federation of this name.
        RunLocked: a process, on this machine or another, is running it; the message names it.
        InfraError: an object or the folder could not be removed; the same call removes the rest.
    """
    with opened_store(settings) as objects:
        sizes = _sizes(objects, settings, name)
        with subject_held(objects, settings, Subject.federation(settings, name), "fedbench remove", say) as lease:
            layout, objects = FederationLayout(settings.s3.prefix, name), LeasedStore(objects, lease)
            for upload in objects.incomplete_uploads(layout.root):
                objects.abort_upload(upload.key, upload.upload_id)
            removed: list[str] = []
            for keys in removal_steps(layout, objects.list(layout.root)):
                if keys == [layout.spec]:  # it identifies the federation as long as other objects could reappear
                    flush_removal(objects, removed)
                objects.delete(keys)
                removed += keys
            flush_removal(objects, removed)
            folder = run_folder(settings, name)
            try:
                remove_path(folder)
            except OSError as error:
                raise InfraError(f"{folder}: cannot be removed: {error.strerror}") from None
            lease.release(removed=True)
    return len(sizes), sum(sizes.values())


def federation_size(settings: Settings, name: str) -> tuple[int, int]:
    """Return the number of a federation's objects, and their bytes.

    Raises:
        SpecError: there is no federation of this name.
    """
    with opened_store(settings) as objects:
        sizes = _sizes(objects, settings, name)
    return len(sizes), sum(sizes.values())


def _sizes(objects: ObjectStore, settings: Settings, name: str) -> dict[str, int]:
    check_name(name, source="federation")
    layout = FederationLayout(settings.s3.prefix, name)
    listing = objects.list(layout.root)
    sizes = {key: size for key, size in listing.items() if not key.startswith(layout.lease)}
    if layout.spec not in sizes:
        known = federations(settings.s3.prefix, objects.list(settings.s3.prefix))
        require_federations(objects, settings, [name], known)
    return sizes


def require_federations(objects: ObjectStore, settings: Settings, names: Sequence[str], known: Sequence[str]) -> None:
    """Check that all ``names`` are among the ``known`` federations, those of the store.

    Raises:
        SpecError: a name is not valid, or is not among them.
    """
    for name in names:
        check_name(name, source="federation")
        if name not in known:
            prefix = settings.s3.prefix
            suites = suite_runs(prefix, objects.list(SuiteLayout(prefix, "any").all_runs))
            raise no_such_federation(name, known, suites)
