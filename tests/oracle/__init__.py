"""Comparisons with other implementations of the same mathematics."""
