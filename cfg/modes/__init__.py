"""Holds one file for each mode of the command line, each with `run(config, workdir)`.

What does not fit is a UserError before anything long begins. On SIGTERM or Ctrl-C what is measured is saved, and
SystemExit carries the status.
"""
