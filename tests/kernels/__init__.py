"""Tests of `qwchat.kernels`."""
