"""A conversation without thoughts, for editors that no key asks for one."""

from __future__ import annotations


class NoThoughts:
    """Ctrl-T has nothing to show."""

    def toggle(self) -> bool:
        return False

    def last_rows(self, columns: int) -> list[str]:
        return []
