"""Distribution of the tests over the processes of pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling

# Folders whose tests share compiled kernels or a large tokenizer.
TOGETHER = ("tests/cpu/kernels/", "tests/text/")


class GroupedScheduling(LoadGroupScheduling):
    """Keeps the tests of a file in one process, and those of the folders in `TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the name of the group of a test."""
        folder = next((folder for folder in TOGETHER if nodeid.startswith(folder)), None)
        return folder or nodeid.partition("::")[0]
