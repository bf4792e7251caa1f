"""Errors of services, the store and this machine. A message names what failed, and what to check."""

from infra.plain_text import visible


class InfraError(Exception):
    """Base of these errors. The message is for the user, and is printed without a traceback.

    A message may quote text from a resident, a server or the store. ``str`` escapes its control characters.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class SettingsError(InfraError):
    """A setting is wrong; the message names it and the accepted values."""


class StoreRefused(SettingsError):
    """The object store refuses a request with these credentials."""


class ClockWrong(SettingsError):
    """This machine's clock differs from a server's so far that the server refuses requests."""


class StoreUnavailable(InfraError):
    """The object store does not answer, after retries: *infrastructure lost*, never a client's fault."""


class DiskFull(InfraError):
    """A file system of this machine is full, or its user's quota is used up: trying again does not help."""

    def __init__(self, found: str, advice: str = "make room, then run the same command again") -> None:
        """found: the full folder and its free space. advice: what the user can do."""
        super().__init__(found, advice)
        self.found, self.advice = found, advice
        self.goes_on = False  # whether the store has the stopped run, so that its name is enough to resume it

    def __str__(self) -> str:
        return visible(f"{self.found}: {self.advice}")


class StoreCorrupt(InfraError):
    """An object is missing, or its hash differs from the one in its record."""


class TrackingUnavailable(InfraError):
    """MLflow does not answer or refuses: the run goes on, and the missing rounds are logged later."""


class PrefectUnavailable(InfraError):
    """Prefect's API does not answer, or refuses."""


class StoredResultRefused(InfraError):
    """A run's state in Prefect has a result that no run of ours stored, or code tried to load a stored result."""


class ServiceFailed(InfraError):
    """An embedded service (S3, Prefect, MLflow) did not come up."""


class SlotLost(InfraError):
    """The process of a slot died in the middle of a turn."""


class TurnReturned(InfraError):
    """A slot gave a turn back before its end, because its worker or process ends. The turn runs again elsewhere."""


class SlurmFailed(InfraError):
    """A command of Slurm is missing, fails, or prints what was not expected."""


class BadReply(InfraError):
    """A turn's reply does not match its request, or reports that the turn's program failed. The turn runs again."""


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
    """Another process uses this home's services in a way that rules out the requested use."""
