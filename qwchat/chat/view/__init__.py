"""Everything the user sees. Only this package and the command line import Rich."""
