"""Compile time of each kernel: the weights of the progress bar on first use."""

# Seconds on an AMD EPYC with AVX-512 VNNI at 3.7 GHz. Only the ratios matter: the first kernels show how fast this
# machine compiles, and the bar is scaled by that.
COSTS = {
    "score_rows": 0.35,
    "weigh_rows": 0.2,
    "run_tile": 1.6,
    "unpack_panel": 0.2,
    "run_panel": 0.3,
    "forward": 10.0,
    "lead": 0.25,
    "serve": 0.2,
    "wake": 0.05,
    "announce_end": 0.02,
}
