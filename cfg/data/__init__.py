"""Gives real data, behind one interface: see `cfg.data.source`."""
