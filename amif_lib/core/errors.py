"""The one exception that the kit raises for input a person can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a record, a field, a setting.

    The message is one line that names the file or field and says what to do about it. The command line prints it
    without a traceback and exits with status 2; a notebook shows the message alone.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython prints of it."""
        return [f"InputError: {self}"]
