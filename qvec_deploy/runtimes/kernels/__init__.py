"""The operator on NVIDIA GPUs: device layouts, Triton kernels, PTX compiled ahead of time, TensorRT plugins."""
