"""Distances between sets of features: NumPy arrays in, numbers out. Nothing else of the project is imported here."""
