"""Program that lets the user choose one of its arguments: `python show_picker.py ITEM...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from qwchat.characters import sanitise
from qwchat.chat.editor.picker import pick
from qwchat.chat.view.colour import styling_of

if __name__ == "__main__":
    print("before")
    chosen = pick(sys.argv[1:], lambda item: f"item {item}", terminal=sys.stdin, styling=styling_of(sys.stdout))
    print("chosen:", sanitise(str(chosen)))
