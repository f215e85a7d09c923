"""The loops of the quantisers, for Numba: a conversion imports them only where their machine code is not kept yet."""
