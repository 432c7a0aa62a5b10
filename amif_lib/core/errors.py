"""The exception that the kit raises for input that the user can correct."""

from __future__ import annotations

import re


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a record, a field, a setting.

    The message is one line that names the file or field and says what to do about it. The command line prints it
    without a traceback and exits with status 2; a notebook shows the message alone.
    """

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython prints in place of a traceback."""
        return [f"InputError: {self}"]


def public(text: object) -> str:
    """A text in one line; parts of its addresses that may be secret (before an @, and queries) are removed."""
    return re.sub(r"(://)[^/\s]*@|\?[^\s'\")]*", r"\1", " ".join(str(text).split()))
