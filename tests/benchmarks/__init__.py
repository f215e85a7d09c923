"""Tests of the programs in `benchmarks`, on small shapes."""
