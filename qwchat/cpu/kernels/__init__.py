"""Compiled kernels on a small SIMD layer. Each has a NumPy twin in `qwchat.cpu.kernels.reference`."""
