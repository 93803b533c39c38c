"""``python -m terway_core.daemon [CONFIG]``: what ``terway daemon`` becomes."""

from __future__ import annotations

import sys
from pathlib import Path

from terway_core.config import load_config
from terway_core.daemon.main import serve
from terway_core.errors import told

with told():
    serve(load_config(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
