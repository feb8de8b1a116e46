"""The errors a user can meet, with one root so that one `except` catches them all.

A message names the value, the bound and the way out, and never holds a secret or a private record.
The command line prints it as one line and exits with `exit_code`.
"""

from __future__ import annotations


class SecureFedError(Exception):
    """Anything SecureFed refuses; the message says what to do instead."""

    exit_code = 2


class ConfigError(SecureFedError, ValueError):
    """A job that cannot run as written: unknown key, value out of range, a pair that does not fit."""


class DataError(SecureFedError, ValueError):
    """Data that is missing, corrupt, empty or labelled outside its range."""


class ModelError(SecureFedError, ValueError):
    """A model that cannot be loaded, adapted or trained in the way asked."""


class DivergedError(ModelError):
    """One client's training left the finite numbers: a learning rate too high, or a record that breaks the model."""


class SuspiciousModelError(ModelError):
    """A client refuses the global model: it looks made to extract data. Nothing was trained or spent."""


class PrivacyError(SecureFedError):
    """Something that would void a privacy guarantee."""


class BudgetExceeded(PrivacyError):
    """A step that would spend more than the budget; nothing was spent."""


class PolicyRefusal(PrivacyError):
    """A job that this site's policy forbids; the message names the line.

    Attributes:
        key: the limit, such as "max_epsilon". place: file:line. words: the reason without the folder, to tell others.
    """

    def __init__(self, message: str, key: str = "", place: str = "", words: str = "") -> None:
        super().__init__(message)
        self.key, self.place, self.words = key, place, words or message


class SelfCheckError(PrivacyError):
    """Training under DP that does not do what its epsilon claims; the run stops at step one."""


class ProtocolError(SecureFedError):
    """A message that a session refuses; names the step, what was expected and what was found."""


class CheckpointError(SecureFedError):
    """A run folder that cannot be resumed or must not be overwritten."""


class AuditError(SecureFedError, ValueError):
    """Something that cannot be audited: states that do not belong together, quantized weights, unreadable candidates."""
