"""Holds what stands below everything: files, errors, processes, devices."""
