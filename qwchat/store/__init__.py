"""Models from a model hub: the catalogue, finding a repository, and converting while it downloads."""
