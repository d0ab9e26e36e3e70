"""Makes this folder's helpers (fake runs, a page's reader, a browser) importable by its tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
