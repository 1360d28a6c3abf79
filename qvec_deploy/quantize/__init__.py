"""Weights to integer codes: the numpy reference, and the same arithmetic run through ModelOpt."""
