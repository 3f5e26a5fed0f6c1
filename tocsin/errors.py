"""Errors that are meant for the person at the terminal.

TocsinError
├── OperatorError   a setting, a permission or the environment is wrong: carries the fix
└── Unavailable     a server does not answer now; trying again may help
"""

from __future__ import annotations


class TocsinError(Exception):
    """The root of what Tocsin raises on purpose."""


class OperatorError(TocsinError):
    """Something that a person has to change; trying again does not help.

    `fix` is a sentence or a command to copy, shown below the message.
    """

    def __init__(self, message: str, fix: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.fix = fix
        self.exit_code = exit_code


class Unavailable(TocsinError):  # noqa: N818  # a state of a server, like its siblings in other libraries
    """A server that can't be reached at the moment."""
