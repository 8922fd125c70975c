"""What a user can put right."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong setting, a missing or broken file: its message is one line that says what to do."""


def choose(what: str, name: str, allowed: list[str]) -> UserError:
    """The error for a name that is none of those allowed."""
    return UserError(f"no {what} {name!r}; there are: {', '.join(allowed)}")
