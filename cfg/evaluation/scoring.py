"""Makes the numbers of a row from what was measured of samples, and a reference."""

import datetime
import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from ml_collections import ConfigDict

from cfg.evaluation.measurement import Measurement
from cfg.evaluation.references import Gaussian, Reference
from cfg.features.network import FeatureNetwork
from cfg.metrics import distances, jackknife
from cfg.metrics.moments import Moments
from cfg.metrics.neighbours import prdc
from cfg.report.rows import Method, Origin, Scores
from cfg.runtime import environment

Array = np.ndarray

NEAREST = 3  # k of precision and recall
DENSE = 5  # k of density and coverage
LEAST_SUBSET = 2  # of KID
SUBSETS_SEED = 2020  # of KID (torch-fidelity's default), FID at infinity and MIND
KID_PAIRS = 5000  # vectors of a set, at most, of which all pairs are taken for its error
LEAST_BLOCKED = 2 * jackknife.BLOCKS  # samples, of the jackknife
LIBRARIES = ('jax', 'jaxlib', 'flax', 'numpy')  # that a number may depend on


@dataclass(frozen=True)
class Scoring:
    """A scoring makes the parts of a row from a measurement of samples, all features of which were kept."""

    options: ConfigDict  # `config.eval`
    network: FeatureNetwork
    reference: Reference  # of the same features
    num_samples: int
    image_shape: tuple[int, ...]  # of the samples, (H, W, C)

    def scores(self, measured: Measurement, labels: Array | None = None) -> Scores:
        """Computes the scores; None for what cannot be measured. `labels` are of the samples, if known."""
        reference, pool, spatial = self.reference, measured.moments, measured.spatial
        score, spread = distances.inception_score(measured.splits.sums)
        features = measured.features
        known = len(features) == measured.count >= LEAST_BLOCKED
        blocks = jackknife.blocks_of(measured.count, labels) if known else None
        found = {
            **_distance('fid', pool, features, reference.pool, blocks),
            'inception_score': score,
            'inception_score_std': spread,
            'accuracy': measured.accuracy,
        }
        if measured.blocks is not None and measured.blocks.sums:
            error = jackknife.inception_score_error(measured.blocks.sums, self.options.is_split_size)
            found['inception_score_standard_error'] = None if math.isnan(error) else error
        limit = distances.fid_at_infinity(features, *reference.pool, seed=SUBSETS_SEED, labels=labels)
        if limit is not None:
            found |= {'fid_infinity': limit.value, 'fid_infinity_standard_error': limit.standard_error}
        if spatial is not None and reference.spatial is not None:
            found['sfid'] = distances.frechet_distance(spatial.mean, spatial.covariance(), *reference.spatial)
        if measured.second is not None and reference.second is not None:
            found |= _distance('fd_dinov2', measured.second, measured.second_features, reference.second, blocks)
        if reference.features is not None:
            real, dtype = reference.features, self.options.neighbours_dtype
            if min(len(features), len(real)) > NEAREST:
                found |= prdc(real, features, k=NEAREST, k_density=DENSE, dtype=dtype)._asdict()
            found['mind'] = distances.mind(features, real, seed=SUBSETS_SEED)
            found |= self._kid(features, real, blocks)
        return Scores(**found)

    def _kid(self, features: Array, real: Array, blocks: Sequence[Array] | None) -> dict[str, float | None]:
        """Computes KID with its standard error, None where that is not known; {} of too few vectors."""
        size = kid_subset_size(self.options, len(features), len(real))
        if size < LEAST_SUBSET:
            return {}
        kid = distances.kid(features, real, num_subsets=self.options.kid_subsets, subset_size=size, seed=SUBSETS_SEED)
        error = kid.standard_error
        if min(len(features), len(real)) < 2 * size:  # subsets that share most vectors say little of it
            error = math.nan
            if blocks and len(real) >= LEAST_BLOCKED:
                both = blocks, jackknife.blocks_of(len(real))
                xs, ys = ([block[: KID_PAIRS // len(of)] for block in of] for of in both)
                error = jackknife.kid(features, real, blocks=xs, real=ys).standard_error
        return {'kid': kid.value, 'kid_std': kid.std, 'kid_standard_error': None if math.isnan(error) else error}

    @property
    def method(self) -> Method:
        """Returns what a row says of how it was scored."""
        names, second = ('is_split_size', 'neighbours_dtype', 'kid_subsets', 'kid_subset_size'), self.network.second
        return Method(
            num_samples=self.num_samples,
            **{name: self.options[name] for name in names},
            num_reference_features=self.reference.num_features,
            features=self.network.name,
            features_sha256=self.network.sha256,
            classifier=self.network.classifier,
            dinov2=second.name if second else None,
            dinov2_sha256=second.sha256 if second else None,
            reference_sha256=self.reference.sha256,
        )

    def origin(self, warnings: Sequence[str] = ()) -> Origin:
        """Returns what a row that is finished now says of how it came about; `warnings` are of this row alone."""
        return Origin(
            warnings=(*self.warnings, *warnings),
            features_file_sha256=self.network.file_sha256,
            dinov2_file_sha256=self.network.second.file_sha256 if self.network.second else None,
            device=jax.devices()[0].device_kind,
            versions={name: importlib.metadata.version(name) for name in LIBRARIES} | environment.recorded(),
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds'),
        )

    @property
    def warnings(self) -> list[str]:
        """Returns what a reader of the numbers must know, a sentence each; it stays in the row."""
        options, network, reference, num_samples = self.options, self.network, self.reference, self.num_samples
        found = []
        for it, score, features in ((network, 'FID', 'features'), (network.second, 'FD-DINOv2', 'features of DINOv2')):
            if it and num_samples <= it.width:
                found.append(
                    f'{num_samples} samples are no more than the {it.width} {features}, so their covariance is '
                    f'singular and {score} is far too high: compare it only with {score}s of as many samples.'
                )
            if it and reference.count is not None and reference.count <= it.width:
                found.append(
                    f'The moments of the reference are of {reference.count} images, no more than the {it.width} '
                    f'{features}, so their covariance is singular and {score} is far too high: give a reference of '
                    'more images.'
                )
        if network.second and reference.second is None:
            found.append('The reference holds no moments of DINOv2, so there is no FD-DINOv2.')
        last = num_samples % options.is_split_size
        if num_samples > options.is_split_size and last:
            found.append(
                f'The last split of the inception score holds {last} of {options.is_split_size} samples and counts as '
                'much as the others, so the score is too low: take a multiple of config.eval.is_split_size.'
            )
        if reference.features is None:
            found.append(
                'The reference holds no images, so there are no precision, recall, density, coverage, KID and MIND, '
                'and no floor of so many samples.'
            )
        else:
            real = reference.num_features
            size = kid_subset_size(options, num_samples, real)
            if min(num_samples, real) <= NEAREST:
                found.append(
                    f'Precision and recall need more than {NEAREST} samples and real images, and there are '
                    f'{num_samples} and {real}, so there are none.'
                )
            elif real <= DENSE:
                found.append(f'Density and coverage need more than {DENSE} real images, and there are {real}.')
            if size < LEAST_SUBSET:
                found.append(f'KID needs at least {LEAST_SUBSET} real images, and there is {real}, so there is none.')
            elif size < options.kid_subset_size:
                found.append(f'KID is of subsets of {size}, as there are {num_samples} samples and {real} real images.')
        if network.spatial_width and reference.spatial is None:
            found.append('The reference holds no spatial moments (mu_s, sigma_s), so there is no sFID.')
        if reference.image_shape is not None and reference.image_shape != tuple(self.image_shape):
            shapes = ['x'.join(map(str, shape)) for shape in (self.image_shape, reference.image_shape)]
            found.append(f'The samples are {shapes[0]}, the images of the reference {shapes[1]}.')
        return found


def _distance(
    name: str, moments: Moments, features: Array, reference: Gaussian, blocks: Sequence[Array] | None
) -> dict[str, float]:
    """Computes a Frechet distance and, with blocks of all samples, its standard error."""
    found = {name: distances.frechet_distance(moments.mean, moments.covariance(), *reference)}
    if blocks:
        it = jackknife.fid(features, *reference, whole=moments, blocks=blocks)
        found[f'{name}_standard_error'] = it.standard_error
    return found


def kid_subset_size(options: ConfigDict, num_samples: int, num_real: int) -> int:
    """Returns `config.eval.kid_subset_size`, or as many as there are."""
    return min(options.kid_subset_size, num_samples, num_real)
