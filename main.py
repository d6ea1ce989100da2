"""Trains, samples, evaluates and reports a classifier-free guided diffusion model; see README.md."""

from cfg.__main__ import main

if __name__ == '__main__':
    main()
