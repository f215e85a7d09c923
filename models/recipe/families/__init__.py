"""One module per family of dialogues; each offers `draw(rng) -> Turn`."""
