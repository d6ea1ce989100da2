"""This room measures samples: the sweep over w, its references, and files of samples."""
