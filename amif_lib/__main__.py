"""`python -m amif_lib`: see amif_lib.app.cli."""

from __future__ import annotations

import sys

from amif_lib.app.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
