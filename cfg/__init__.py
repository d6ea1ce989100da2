"""Implements classifier-free diffusion guidance (Ho & Salimans, arXiv 2207.12598) in JAX/Flax."""
