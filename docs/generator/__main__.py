"""Write the generated pages, or compare them with what is committed: `python -m docs.generator [--check]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from docs.generator import chat_commands, cli, estimates, exit_codes, formats, json_output, settings

FOLDER = Path(__file__).resolve().parent.parent
PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli.page,
    "reference/settings.md": settings.page,
    "reference/chat-commands.md": chat_commands.page,
    "reference/exit-codes.md": exit_codes.page,
    "reference/json.md": json_output.page,
    "reference/formats.md": formats.page,
    "includes/which-model.md": estimates.which_model,
    "includes/calculator.md": estimates.calculator,
}


def stale() -> list[str]:
    """Return the names of committed pages that differ from what the program's tables give."""
    return [
        name
        for name, make in PAGES.items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != make()
    ]


def main() -> int:
    """Write or check the pages. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.generator", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    if parser.parse_args().check:
        old = stale()
        print(f"out of date: {', '.join(old)}; run python -m docs.generator" if old else "all pages are current")
        return bool(old)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
    print(f"wrote {len(PAGES)} pages into {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
