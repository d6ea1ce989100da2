"""Guidance on Gaussian mixtures, whose scores are exact."""
