"""Makes a package of the tests; torch-fidelity installs one of the same name, which would come first otherwise."""
