"""Errors of the learning core. Each message names the field, file or client, and what was expected."""

from tasks.plain_text import visible


class FedbenchError(Exception):
    """Base of every error whose message is meant for the user: shown without a traceback, exit code 2.

    A message may name files, classes and what was found in them. As text it has no control characters.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class SpecError(FedbenchError):
    """The specification is wrong: raised before anything starts."""


class DataError(FedbenchError):
    """A data set cannot be used; the message names the file and what was expected in it."""


class ClientError(FedbenchError):
    """A client's own fault (bad data, NaN, wrong shape): it is dropped from the round, with this reason."""


class ModelDiverged(ClientError):
    """A model gives no finite loss. The client that found out is not to blame."""
