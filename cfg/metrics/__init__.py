"""Distances between sets of features, from arrays to numbers."""
