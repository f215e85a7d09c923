"""Machine code for both packages: compile it with Numba, keep the object code, and load it without Numba."""
