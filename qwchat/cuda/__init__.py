"""The CUDA device: kernels as PTX text, launched through the driver's library."""
