"""Holds the paper's mathematics: pure functions on arrays that import nothing of this project above them."""
