"""Seeded fuzzer of everything that the program reads: `python -m tests.fuzz`."""
