"""How well a model predicts text, and how far its predictions are from those of another model."""
