"""One file a mode of the command line, each with `run(config, workdir)`."""
