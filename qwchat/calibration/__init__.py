"""The unquantised model, one layer at a time: what calibration and quality checks run."""
