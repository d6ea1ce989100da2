"""Holds what a user's own program calls; `cfg` names all of it."""
