"""Flax modules. No module downloads anything or reads a file."""
