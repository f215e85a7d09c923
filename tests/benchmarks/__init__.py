"""Tests of the programs in `benchmarks`, with small shapes."""
