"""Statistics that grow batch by batch and merge: feature moments and the sums of the inception score.

Everything is float64 on the host, so a sweep over 50 000 samples needs memory for one batch and two matrices.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Moments:
    """Holds count, mean and scatter of feature vectors."""

    count: int  # number of vectors
    mean: Array  # [D] float64
    scatter: Array  # sum of (f - mean)(f - mean)^T, [D, D] float64

    @classmethod
    def empty(cls, width: int) -> 'Moments':
        """Returns the moments of no vectors of a given width."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: Array) -> 'Moments':
        """Computes the moments of a batch [N, D], N >= 1."""
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    @classmethod
    def of_parts(cls, parts: Iterable[Array]) -> 'Moments':
        """Computes those of vectors that come in parts, one or more, of which none is empty."""
        return functools.reduce(cls.merge, map(cls.of, parts))

    def merge(self, other: 'Moments') -> 'Moments':
        """Returns the moments of both sets together (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        # In place after the first matrix: two of 2048 features are 64 MiB, and this runs once a batch.
        scatter = np.outer(delta, delta * (self.count * other.count / count))
        scatter += self.scatter
        scatter += other.scatter
        return Moments(count, mean, scatter)

    def covariance(self) -> Array:
        """Returns the covariance [D, D], divided by count - 1; raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f'a covariance needs at least 2 vectors, not {self.count}')
        return self.scatter / (self.count - 1)

    def state(self) -> dict[str, Array]:
        """Returns everything as arrays, for a file; `from_state` gives the same numbers bit for bit."""
        return {'count': np.int64(self.count), 'mean': self.mean, 'scatter': self.scatter}

    @classmethod
    def from_state(cls, state: dict[str, Array]) -> 'Moments':
        """Restores what `state` returned."""
        return cls(int(state['count']), state['mean'], state['scatter'])


@dataclass(frozen=True)
class ScoreSums:
    """Sums p and p log p over consecutive samples: what one split of the inception score needs."""

    count: int  # number of samples
    probabilities: Array  # sum of p(y | sample), [C] float64
    negentropy: float  # sum of sum_y p(y | sample) log p(y | sample)

    @classmethod
    def of(cls, log_probabilities: Array) -> 'ScoreSums':
        """Sums over a batch of log p(y | sample), [N, C]; -inf where p is 0."""
        log_p = np.asarray(log_probabilities, np.float64)
        p = np.exp(log_p)
        return cls(len(p), p.sum(axis=0), float(np.where(p > 0, p * np.where(p > 0, log_p, 0.0), 0.0).sum()))

    def merge(self, other: 'ScoreSums') -> 'ScoreSums':
        """Returns the sums over both sets together."""
        return ScoreSums(
            self.count + other.count, self.probabilities + other.probabilities, self.negentropy + other.negentropy
        )


class Splits:
    """Cuts a stream of samples into splits of a fixed size, for the inception score; the last one may be smaller.

    Splits within larger ones, of `within` samples, end where these end too.
    """

    def __init__(self, size: int, *, within: int | None = None):
        self._size, self._within = size, within or size
        self.sums: list[ScoreSums] = []

    def add(self, log_probabilities: Array) -> None:
        """Takes the next samples, [N, C]."""
        count = sum(split.count for split in self.sums)
        while len(log_probabilities):
            place = count % self._within
            if place % self._size == 0:
                self.sums.append(ScoreSums(0, 0.0, 0.0))
            room = min(self._size - place % self._size, self._within - place)
            count += min(room, len(log_probabilities))
            self.sums[-1] = self.sums[-1].merge(ScoreSums.of(log_probabilities[:room]))
            log_probabilities = log_probabilities[room:]

    def state(self) -> dict[str, Array]:
        """Returns everything as arrays, for a file; `from_state` gives the same numbers bit for bit."""
        return {
            'size': np.int64(self._size),
            'within': np.int64(self._within),
            'counts': np.array([split.count for split in self.sums], np.int64),
            'probabilities': np.array([split.probabilities for split in self.sums], np.float64),
            'negentropies': np.array([split.negentropy for split in self.sums], np.float64),
        }

    @classmethod
    def from_state(cls, state: dict[str, Array]) -> 'Splits':
        """Restores what `state` returned."""
        splits = cls(int(state['size']), within=int(state.get('within', state['size'])))
        columns = zip(state['counts'], state['probabilities'], state['negentropies'], strict=True)
        splits.sums = [ScoreSums(int(count), p, float(negentropy)) for count, p, negentropy in columns]
        return splits
