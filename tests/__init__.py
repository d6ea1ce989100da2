"""A package, as torch-fidelity installs one of the same name, which would come first otherwise."""
