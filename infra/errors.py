"""Errors of services, the store and this machine. A message names what was not reached, and what to check."""

from infra.plain_text import visible


class InfraError(Exception):
    """Base: the message is meant for the user, shown without a traceback.

    A message may hold what a resident, a server or the store has written. As text it has no control characters.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class SettingsError(InfraError):
    """A setting is wrong; the message names it and the accepted values."""


class StoreRefused(SettingsError):
    """The object store does not let these credentials do this."""


class ClockWrong(SettingsError):
    """This machine's clock differs from a server's so far that the server refuses requests."""


class StoreUnavailable(InfraError):
    """The object store does not answer, after retries: *infrastructure lost*, never a client's fault."""


class DiskFull(InfraError):
    """A file system of this machine is full, or its user's quota is used up: trying again does not help."""

    def __init__(self, found: str, advice: str = "make room, then run the same command again") -> None:
        """found: which folder has how much; advice: what to do about it."""
        super().__init__(found, advice)
        self.found, self.advice = found, advice
        self.goes_on = False  # what it stopped stands in the store, so that its name is enough to go on

    def __str__(self) -> str:
        return visible(f"{self.found}: {self.advice}")


class StoreCorrupt(InfraError):
    """An object is missing or does not hash to what its record says."""


class TrackingUnavailable(InfraError):
    """MLflow does not answer or refuses: the run goes on, and the missing rounds are logged later."""


class PrefectUnavailable(InfraError):
    """Prefect's API does not answer, or refuses."""


class StoredResultRefused(InfraError):
    """A run's state in Prefect has a result that no run of ours stored, or something asked to load a stored result."""


class ServiceFailed(InfraError):
    """An embedded service (S3, Prefect, MLflow) did not come up."""


class SlotLost(InfraError):
    """The process of a slot died in the middle of a turn."""


class BadReply(InfraError):
    """A turn's reply is no answer to its request, or says that the turn's program failed: the turn runs again."""


class PoolUnusable(InfraError):
    """A work pool, or its deployment, is missing, or no resident starts on it; the message says what to do."""


class SlotRefused(InfraError):
    """A run asks for more than any slot of its worker has."""


class ForkServerLost(InfraError):
    """The warm process that runs are forked from did not come up, or ended."""


class DeadlineExceeded(InfraError):
    """A turn ran over its deadline and its process was ended."""


class RunLocked(InfraError):
    """Another process is running the federation of this name."""


class HomeInUse(InfraError):
    """Another process has this home's services open, in a way that excludes what was asked."""
