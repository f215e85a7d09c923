"""Write a checkpoint as a Hugging Face folder: `python -m models.recipe.mirror.publish WORK_FOLDER FOLDER`.

`--model NAME` chooses another model of the plan than `mirror`. It may run while the training goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..export import export
from .plan import Plan


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the checkpoints and the tokenizer")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--model", default="mirror", help="name in the plan")
    options = parser.parse_args()
    shape = Plan.load().models[options.model].shape
    tokens = export(options.work / f"{options.model}.pt", options.folder, shape=shape, tokenizer=options.work)
    print(f"{options.folder}: trained on {tokens} tokens")


if __name__ == "__main__":
    main()
