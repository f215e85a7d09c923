"""Surfaces that hostile files reach: each module makes the cases of one surface."""
