"""Machine code for both packages: Numba in one place, and the objects that it makes kept without it."""
