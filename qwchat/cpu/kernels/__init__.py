"""Compiled kernels on a small SIMD layer, with NumPy twins in :mod:`qwchat.cpu.kernels.reference`."""
