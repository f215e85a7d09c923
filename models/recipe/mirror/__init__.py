"""A bigger model and its texts: real documentation, source and licences from installed packages."""
