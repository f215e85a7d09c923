"""Loops of the quantisers for Numba. A conversion imports them only if their machine code is not in the cache."""
