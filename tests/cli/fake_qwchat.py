"""The command line with a scripted model instead of the engine: `python fake_qwchat.py ARGUMENTS`.

QWCHAT_FAKE holds the fields of FakeModel as JSON; `others` overrides them by the name of a model folder. `load_seconds`
delays loading, and `load_error` names a built-in exception that loading raises. `scripted` holds the arguments of
`tests.thinking.load_scripted`, for a reply of the engine. The file named by QWCHAT_FAKE_STARTED is created when the
program begins.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qwchat.cli.dependencies import Dependencies
from qwchat.cli.main import main


def dependencies() -> Dependencies:
    def load(path: Path, *, context: int | None = None, **unused: object) -> object:
        from tests.chat.fakes import FakeModel

        script = json.loads(os.environ.get("QWCHAT_FAKE", "{}"))
        script |= script.pop("others", {}).get(path.name, {})
        time.sleep(script.pop("load_seconds", 0))
        if error := script.pop("load_error", None):
            raise getattr(builtins, error)("as the script says")
        if scripted := script.pop("scripted", None):
            from tests.thinking import load_scripted

            return load_scripted(**scripted, context=context)
        if context is not None:
            script["context_size"] = context
        return FakeModel(**script)

    return Dependencies(
        load=load,
        compiled=lambda: True,
        bandwidth=lambda threads: 1e9,
        quick_bandwidth=lambda threads: 30e9,
        card=lambda: None,
        int8_peak=lambda threads: 1e12,
    )


def start() -> None:
    """Run the command line of this process and exit."""
    if started := os.environ.get("QWCHAT_FAKE_STARTED"):
        Path(started).touch()
    main(dependencies=dependencies())


if __name__ == "__main__":
    start()
