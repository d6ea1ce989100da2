"""Keeps the effective strengths of the rows of a workdir, each in a file `strengths/<identity of the row>.json`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from cfg.runtime.errors import UserError
from cfg.runtime.files import write_whole

FOLDER = 'strengths'


@dataclass(frozen=True, kw_only=True)
class RowStrength:
    """This is how strong Eq. 6 would be in the place of the rule of a row; see `cfg.diffusion.effective`."""

    num_samples: int  # that were measured; 0 where it is known without
    logsnr: list[float]  # the levels of the sampler, increasing
    w_eff: list[float]  # at each level
    remainder: list[float]  # the share of what the rule adds that is not along d
    twin: str | None  # the text of Eq. 6 with w_eff as its schedule, for w = 1; None where the rule is Eq. 6
    twin_row: str | None  # the identity of the row of the twin


def write(workdir: Path, row: str, strength: RowStrength) -> None:
    """Writes the file of the row of an identity."""
    path = path_of(workdir, row)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, (json.dumps(dataclasses.asdict(strength), allow_nan=False) + '\n').encode())


def read(workdir: Path, row: str) -> RowStrength | None:
    """Returns the strength of the row of an identity; None where it has not been measured.

    Raises:
        UserError: when its file is not as it was written.
    """
    path = path_of(workdir, row)
    try:
        found = RowStrength(**json.loads(path.read_bytes()))
        if len({len(found.logsnr), len(found.w_eff), len(found.remainder)}) != 1:
            raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        remedy = 'delete that file, and --mode=compare measures it again'
        raise UserError(f'{path} does not hold the strength of a row: {remedy}.') from error
    return found


def path_of(workdir: Path, row: str) -> Path:
    """Returns the path of the file of the row of an identity."""
    return workdir / FOLDER / f'{row}.json'
