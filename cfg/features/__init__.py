"""Holds the networks whose features the metrics compare, and their weights."""
