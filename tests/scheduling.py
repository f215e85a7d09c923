"""Which tests run in the same process where several run them: pytest-xdist asks for it."""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling

# Folders whose tests need the same kernels compiled, or the same large tokenizer.
TOGETHER = ("tests/cpu/kernels/", "tests/text/")


class GroupedScheduling(LoadGroupScheduling):
    """Tests of a file stay together, and so do those of the folders `TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the name of the group of a test."""
        folder = next((folder for folder in TOGETHER if nodeid.startswith(folder)), None)
        return folder or nodeid.partition("::")[0]
