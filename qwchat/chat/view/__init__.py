"""What a person sees. Rich is imported here and nowhere else."""
