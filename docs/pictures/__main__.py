"""Draw the pictures of the documentation from real runs, or check that they are current.

    python -m docs.pictures                 # all of them
    python -m docs.pictures chat bench      # some
    python -m docs.pictures --check         # run the scenes again, and compare

The program runs in a pseudo-terminal, keys are typed into it, and what a terminal emulator holds becomes the picture.
"""

from __future__ import annotations

import argparse
import sys

from docs.pictures import bench, chat, completion, convert, recording, stop_and_continue
from docs.pictures.scene import home, other_home

SCENES = {each.SCENE.name: each.SCENE for each in (chat, stop_and_continue, completion, convert, bench, recording)}


def main() -> int:
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.pictures", description="draw pictures from real runs")
    parser.add_argument("names", nargs="*", choices=[*SCENES, []], help="the pictures to draw (default: all)")
    parser.add_argument("--check", action="store_true", help="compare the pictures with new runs, and draw nothing")
    options = parser.parse_args()
    different = 0
    with home(other_home()) if options.check else home() as folder:
        for name in options.names or SCENES:
            scene = SCENES[name]
            if options.check:
                found = scene.differences(folder)
                print(*found or [f"{scene.picture}: current"], sep="\n")
                different += bool(found)
            else:
                svg = scene.draw(folder)
                scene.picture.write_text(svg, encoding="utf-8")
                print(f"{scene.picture}: {len(svg.encode()):,} bytes")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
