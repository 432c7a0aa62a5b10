"""The exception that the kit raises for input that the user can correct."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a record, a field, a setting.

    The message is one line that names the file or field and says what to do about it. The command line prints it
    without a traceback and exits with status 2; a notebook shows the message alone.
    """

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython prints in place of a traceback."""
        return [f"InputError: {self}"]
