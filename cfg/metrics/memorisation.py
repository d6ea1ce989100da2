"""Tells whether samples copy training images, by distances of features to the nearest training image."""

from dataclasses import dataclass

import numpy as np

from cfg.metrics.neighbours import nearest, radii

Array = np.ndarray

COPY_QUANTILE = 0.05  # the share of held-out images that count as near-copies


@dataclass(frozen=True)
class Copying:
    """This says how near samples are to training images."""

    authenticity: float  # see `TrainingSet.copying`
    near_copies: float
    distances: Array  # squared, of each sample to the nearest training image, [N] float32
    nearest: Array  # which one that is, [N] int64


@dataclass(frozen=True)
class TrainingSet:
    """A training set is the features of some training images, with what is normal among real images."""

    features: Array  # [M, D] float32; may be a np.memmap
    radii: Array  # squared distance of each to the nearest other, [M] float32
    held_out: Array  # squared distances of images that are not among them to the nearest of them, [H] float32

    @classmethod
    def of(cls, features: Array, held_out: Array) -> 'TrainingSet':
        """Measures training images [M, D], M > 1, and held-out ones [H, D], H > 0, of the same distribution."""
        return cls(features, radii(features, (1,))[:, 0], nearest(held_out, features)[0])

    def copying(self, samples: Array) -> Copying:
        """Compares samples [N, D] with the training images.

        A sample is authentic (Alaa et al. 2022, arXiv 2102.08921) if its nearest training image has another training
        image that is nearer to it than the sample is. It is a near-copy, a definition of our own, if it is nearer to
        the training images than all but `COPY_QUANTILE` of the held-out images are. Of real images that share are.
        """
        distances, which = nearest(samples, self.features)
        near_copies = float(np.mean(distances < np.quantile(self.held_out, COPY_QUANTILE)))
        return Copying(float(np.mean(self.radii[which] < distances)), near_copies, distances, which)
