"""Holds one file for each mode of the command line, each with `run(config, workdir)`."""
