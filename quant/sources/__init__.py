"""Where models to be converted come from, one file per kind of source."""
