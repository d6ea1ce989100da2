"""Says what a row of results is: one measurement of samples, with what it was made of.

The file of a row holds one JSON object, in which the fields of a row's parts stand side by side: `w`, `fid`,
`reference`. Every field is there, and null where there is nothing to say; rows of older versions lack those of `LATER`.
`results.schema.json` beside this file says what each field means, for users of other languages too.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from cfg.runtime.errors import UserError

# Guidance, sampler and grid of the paper.
PAPER = {'guidance': 'cfg', 'sampler': 'ancestral', 'grid': 'paper'}
# Fields that older rows lack, where they count as null; null they are no part of an identity.
LATER = (
    *('fd_dinov2', 'floor_fd_dinov2', 'dinov2', 'dinov2_sha256', 'dinov2_file_sha256'),
    *('density', 'coverage', 'fid_infinity', 'fid_infinity_standard_error', 'mind'),
    'ema_length',
    *('authenticity', 'near_copies', 'floor_authenticity'),
    *('fid_standard_error', 'inception_score_standard_error', 'fd_dinov2_standard_error', 'finite_sample_draws'),
)

# How a warning of a row begins that belongs to a search, or to another row as its twin, and not to a curve.
TUNED, TWIN = 'Of --mode=tune', 'A twin of --mode=compare'


class _Checked:
    """This dataclass refuses values of another type than its fields'; what JSON writes otherwise is converted."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = _checked(field.type, getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True, kw_only=True)
class Sampling(_Checked):
    """This is the way from noise to samples, but for w; guidance, sampler and grid are their texts, as in a config."""

    guidance: str
    sampler: str
    grid: str
    num_steps: int
    logvar_interp: float | None
    clip_x: bool
    logsnr_min: float
    logsnr_max: float
    rounding: str
    prediction: str
    dtype: str

    @property
    def departures(self) -> list[str]:
        """Returns what is not as in the paper, in words: 'grid uniform'."""
        return [f'{name} {getattr(self, name)}' for name, usual in PAPER.items() if getattr(self, name) != usual]


@dataclass(frozen=True, kw_only=True)
class Drawn(_Checked):
    """This says where the samples of a sweep's row come from."""

    step: int
    ema: bool
    ema_length: float | None = None
    params_sha256: str
    uncond_params_sha256: str | None = None
    weaker_params_sha256: str | None = None
    classifier_params_sha256: str | None = None
    sampling: Sampling
    labels: str
    seed: int
    w: float


@dataclass(frozen=True, kw_only=True)
class Given(_Checked):
    """These samples were given as a file."""

    samples_sha256: str


@dataclass(frozen=True, kw_only=True)
class Method(_Checked):
    """This says how samples were scored."""

    num_samples: int
    is_split_size: int
    neighbours_dtype: str
    kid_subsets: int
    kid_subset_size: int
    num_reference_features: int
    features: str
    features_sha256: str
    classifier: str | None
    reference_sha256: str
    dinov2: str | None = None
    dinov2_sha256: str | None = None

    @property
    def networks(self) -> str:
        """Returns the networks of all features, in words."""
        return self.features + (f', {self.dinov2}' if self.dinov2 else '')

    @property
    def copies_in(self) -> str:
        """Returns the network in whose features copies of training images are told, in words."""
        return self.dinov2 or self.features


@dataclass(frozen=True, kw_only=True)
class Scores(_Checked):
    """These are the metrics of samples, see docs/evaluation.md; None for what cannot be measured."""

    fid: float | None
    sfid: float | None = None
    inception_score: float | None
    inception_score_std: float | None
    precision: float | None = None
    recall: float | None = None
    kid: float | None = None
    kid_std: float | None = None
    kid_standard_error: float | None = None
    accuracy: float | None = None
    fd_dinov2: float | None = None
    density: float | None = None
    coverage: float | None = None
    mind: float | None = None
    fid_infinity: float | None = None
    fid_infinity_standard_error: float | None = None
    authenticity: float | None = None
    near_copies: float | None = None
    fid_standard_error: float | None = None
    inception_score_standard_error: float | None = None
    fd_dinov2_standard_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Beside(_Checked):
    """Scores are read beside these."""

    reference: str
    reference_file_sha256: str | None
    finite_sample_fid: float | None
    finite_sample_draws: str | None = None
    floor: str | None = None
    floor_fid: float | None = None
    floor_inception_score: float | None = None
    floor_accuracy: float | None = None
    floor_fd_dinov2: float | None = None
    floor_authenticity: float | None = None


@dataclass(frozen=True, kw_only=True)
class Origin(_Checked):
    """This says how a row came about."""

    warnings: tuple[str, ...]
    features_file_sha256: str | None
    dinov2_file_sha256: str | None = None
    device: str
    versions: dict[str, str]
    finished: str


@dataclass(frozen=True, kw_only=True)
class _Measured(_Checked):
    """Rows of every kind have these; those that agree in source and method are the same measurement."""

    FOLDER: ClassVar[str]  # of the workdir, which holds the files of such rows
    MODE: ClassVar[str]  # that measures them

    source: Drawn | Given
    method: Method
    scores: Scores
    beside: Beside
    origin: Origin

    @property
    def identity(self) -> str:
        """Returns a digest of what makes the row the measurement that it is."""
        return identity_of(self.source, self.method)

    @property
    def flat(self) -> dict[str, Any]:
        """Returns the identity, and the fields of the row and of its parts, by their names."""
        found = {'identity': self.identity}
        for name, value in dataclasses.asdict(self).items():
            found |= value if dataclasses.is_dataclass(getattr(self, name)) else {name: value}
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Returns `flat`, and the fields of `sampling` by their names."""
        return self.flat | self.flat.get('sampling', {})

    @property
    def not_finite(self) -> list[str]:
        """Returns the numbers that JSON has no words for: 'fid is nan'."""
        return [f'{name} is {x}' for name, x in self.settings.items() if isinstance(x, float) and not math.isfinite(x)]

    def to_json(self, indent: int | None = None) -> str:
        """Returns the row as one JSON object; its numbers must be finite."""
        return json.dumps(self.flat, allow_nan=False, indent=indent)

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> Self:
        """Makes the row of the fields that `flat` gives, as they are in JSON.

        Raises:
          ValueError: when a field is missing or of another type than it should be.
        """
        values = dict.fromkeys(LATER) | values
        parts = [field for field in dataclasses.fields(cls) if dataclasses.is_dataclass(field.type)]
        return _of(cls, values | {part.name: _of(part.type, values) for part in parts})

    @classmethod
    def from_json(cls, content: str | bytes, named: str) -> Self:
        """Reads the row that `to_json` wrote; `named` is the file that holds it, for the user.

        Raises:
          UserError: when a field is missing, unknown, or of another type than it should be.
        """
        try:
            values = json.loads(content)
            if not isinstance(values, dict):
                raise ValueError('is not a JSON object')
            row = cls.from_flat(values)
            if row.not_finite:
                raise ValueError(f'says that {row.not_finite[0]}, which is no number')
            values, expected = (dict.fromkeys(LATER) | it for it in (values, json.loads(row.to_json())))
            if wrong := [name for name in values | expected if values.get(name, ...) != expected.get(name, ...)]:
                raise ValueError(f'has {wrong[0]}={_shown(values.get(wrong[0]))}, which does not fit its other fields')
            return row
        except ValueError as error:
            problem = 'is not JSON' if isinstance(error, json.JSONDecodeError) else error
            remedy = f'delete that file, and --mode={cls.MODE} measures the row again'
            raise UserError(f'{named} {problem}: {remedy}.') from error


@dataclass(frozen=True, kw_only=True)
class Row(_Measured):
    """A row of a sweep is one point of it, measured."""

    FOLDER: ClassVar[str] = 'results'
    MODE: ClassVar[str] = 'eval'

    source: Drawn
    p_uncond: float
    label_in: str
    evaluations: int
    cost: float
    samples: str | None
    config_sha256: str
    seconds: float

    @property
    def apart(self) -> bool:
        """Tells whether it is of a search or a twin, which report and comparison leave out of their curves."""
        return any(text.startswith((TUNED, TWIN)) for text in self.origin.warnings)

    @property
    def order(self) -> tuple:
        """Returns the place of a row: by step, averages first, guidance to v, the paper's first, seed, w."""
        source, sampling = self.source, self.source.sampling
        texts = [(getattr(sampling, name) != usual, getattr(sampling, name)) for name, usual in PAPER.items()]
        v = -1.0 if sampling.logvar_interp is None else sampling.logvar_interp
        average = not source.ema, source.ema_length or 0.0
        return source.step, *average, *texts, sampling.num_steps, v, source.seed, source.w, self.identity


@dataclass(frozen=True, kw_only=True)
class FileRow(_Measured):
    """A row of somebody's samples is their file, `samples`, measured."""

    FOLDER: ClassVar[str] = 'evaluate_npz'
    MODE: ClassVar[str] = 'evaluate_npz'

    source: Given
    samples: str

    @property
    def order(self) -> tuple:
        """Returns the place of a row among others: that of its file's name."""
        return self.samples, self.identity


def identity_of(source: Drawn | Given, method: Method) -> str:
    """Returns the identity of a row, measured or not: 16 hexadecimal digits."""
    values = [
        {name: value for name, value in dataclasses.asdict(it).items() if value is not None or name not in LATER}
        for it in (source, method)
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


_WORDS = {
    int: 'whole number',
    float: 'number',
    bool: 'true or false',
    str: 'text',
    tuple: 'list of texts',
    dict: 'object of texts',
}


def _of(kind: type, values: dict[str, Any]) -> Any:
    """Makes a dataclass from those values that are its fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    if missing := [name for name in names if name not in values]:
        raise ValueError(f'has no {missing[0]}')
    return kind(**{name: values[name] for name in names})


def _checked(kind: Any, value: Any, name: str) -> Any:
    """Returns a value of JSON as the type of its field."""
    if isinstance(kind, types.UnionType):  # X | None
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _of(kind, value)
    kind = typing.get_origin(kind) or kind
    if (kind is float and type(value) is int) or (kind is tuple and isinstance(value, list)):
        value = kind(value)
    items = list(value.values() if kind is dict else value) if isinstance(value, dict | tuple) else []
    if type(value) is not kind or not all(isinstance(item, str) for item in items):
        raise ValueError(f'has {name}={_shown(value)}, which is no {_WORDS.get(kind, "object")}')
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
