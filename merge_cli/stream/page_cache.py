"""Page-cache pressure: memory that is available for cached files, against what a merge reads and writes."""

from __future__ import annotations

import re
from pathlib import Path

from merge_cli.plan import MergePlan

_MEMORY = Path("/proc/meminfo")


def exceeds_page_cache(plan: MergePlan) -> bool:
    """Tell whether the files of a merge take more than three quarters of the memory that the system could give them.

    Kept in memory they would push out everyone else's, and be gone themselves before they are read a second time, by
    this merge or the next.
    """
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMORY.read_text(encoding="ascii"), flags=re.MULTILINE)
    except OSError:
        return False
    return found is not None and 4 * (plan.read_bytes + plan.written_bytes) > 3 * int(found[1]) * 1024
