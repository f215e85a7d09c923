"""Draw the plots of the documentation from the measurements in JSON lines files.

    python -m benchmarks.report                              # benchmarks/results to docs/plots
    python -m benchmarks.report --results DIR --into DIR     # your own measurements

Needs matplotlib, which the extra `bench` installs. With the version of matplotlib in constraints.txt, the same results
give the same plots on every machine. Plots whose measurements are missing are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measurements import Results
from benchmarks.plots import draw

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
PLOTS = REPOSITORY / "docs" / "plots"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON lines files")
    parser.add_argument("--into", type=Path, default=PLOTS, help="folder of the plots")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    for name, svg in draw(Results.read(options.results)).items():
        file = options.into / f"{name}.svg"
        file.write_text(svg, "utf-8")
        print(file)


if __name__ == "__main__":
    main()
