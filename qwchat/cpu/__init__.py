"""The CPU: everything that computes there, and nothing that another device shares."""
