"""The CPU device: everything that computes on a CPU, and nothing that another device would share."""
