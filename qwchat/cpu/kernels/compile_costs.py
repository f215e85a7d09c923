"""How long each kernel takes to compile: weights for the bar of a first run, which measures the machine itself."""

# Seconds of an AMD EPYC with AVX-512 VNNI at 3.7 GHz. Only their ratios matter: the first ones tell how fast the
# machine is.
COSTS = {
    "score_rows": 0.35,
    "weigh_rows": 0.2,
    "run_tile": 1.15,
    "unpack_panel": 0.2,
    "run_panel": 0.3,
    "forward": 10.0,
    "lead": 0.25,
    "serve": 0.2,
    "wake": 0.05,
    "announce_end": 0.02,
}
