"""Every error of this project that a person may meet.

GuardError
├── BundleError        a probe bundle that is missing, corrupt, or for another model
├── UnsupportedError   an engine, model or option that cannot be guarded
├── TapError           the taps are not where they should be, or do not answer: refuse to serve
├── FitError           questions, answers or a judge that no probe can be fit with; what was done is kept
└── RequestError       a request that cannot be carried out; names the field
    └── CapacityError  one that could be, were there room
"""

from __future__ import annotations


class GuardError(Exception):
    """Base of all errors raised by this project."""


class BundleError(GuardError):
    """A probe bundle cannot be used; the message says why and what to do."""


class UnsupportedError(GuardError):
    """What was asked for cannot be guarded; the message names it and what is supported."""


class TapError(GuardError):
    """The taps inside the engine do not work; serving would be silently unguarded."""


class FitError(GuardError):
    """A probe cannot be fit; the message says why, and what to change. Finished stages are kept."""


class RequestError(GuardError):
    """A request is wrong: ``param`` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class CapacityError(RequestError):
    """There is no room for a request now; later there may be."""
