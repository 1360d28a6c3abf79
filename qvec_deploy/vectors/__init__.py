"""Quantization vectors: rho = theta_QAT - theta_FP of a donor, and what may be done with them."""
