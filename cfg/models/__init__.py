"""Flax modules, and the conversion of other projects' weights to their parameters. Nothing is downloaded."""
