"""Errors of the learning core. Each message names the field, file or client, and what was expected."""

from tasks.plain_text import visible


class FedbenchError(Exception):
    """Base of every error whose message is meant for the user: printed without a traceback, exit code 2.

    A message may quote names and text from files. ``str`` escapes control characters in them.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class SpecError(FedbenchError):
    """The specification is wrong. Raised before anything starts."""


class DataError(FedbenchError):
    """A data set cannot be used. The message names the file and what was expected in it."""


class ClientError(FedbenchError):
    """A client is at fault (bad data, NaN, wrong shape). It is dropped from the round, with the message as reason."""


class ModelDiverged(ClientError):
    """A model gives no finite loss. The client that found this is not at fault."""
