"""Sources of the CUDA kernels. `python -m qwchat.cuda.kernels` compiles them; the program reads only the PTX."""
