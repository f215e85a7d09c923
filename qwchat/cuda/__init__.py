"""The CUDA device: everything that computes on an NVIDIA GPU, through the driver alone.

`kernels` holds the sources of the GPU code and is never imported by the program, which loads the PTX in `ptx`.
"""
