"""Lambda, donors' weights and method, chosen by what the quantized model computes and by nothing else."""
