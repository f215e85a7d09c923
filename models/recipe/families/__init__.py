"""Families of dialogues: each module offers `draw(rng) -> Turn`."""
