"""Tests; the folders mirror the two packages."""
