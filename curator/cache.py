"""Where what was fetched is kept on this machine: weights, and copies of what lies behind a URL. May be removed."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$CURATOR_CACHE`, or `~/.cache/curator`."""
    return Path(os.environ.get("CURATOR_CACHE") or Path.home() / ".cache" / "curator")
