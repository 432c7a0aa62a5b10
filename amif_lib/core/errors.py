"""The one exception that the kit raises for input a person can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a record, a field, a setting.

    The message is one line that names the file or field and says what to do about it. The command line prints it
    without a traceback and exits with status 2; in a notebook it is raised as it is.
    """
