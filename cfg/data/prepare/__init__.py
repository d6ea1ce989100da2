"""Does all of `--mode=prepare_data`, from images of any kind to a prepared data set.

An input (`inputs.py`: a folder of images, `folders.py`, or a data set of TFDS, `tfds_sets.py`) is cut into parts. Each
part is decoded, resized and written as one file (`parts.py`), over all cores (`job.py`). The parts become the files of
the data set and its manifest (`dataset.py`). `run.py` does it all, or checks what is there. `cfg/data/manifest.py` and
`cfg/data/disk.py` are all that reading needs.
"""
