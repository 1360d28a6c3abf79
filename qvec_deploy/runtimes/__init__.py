"""Runtimes: what makes an engine of a bundle's weights and runs it, one folder each."""
