"""Turns a config into checked values, and into what is built from them."""
