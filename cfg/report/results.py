"""Keeps the results of a workdir: a finished row is one file, and a table of all rows is made from these files."""

from pathlib import Path

from cfg.report.rows import FileRow, Row
from cfg.runtime.errors import UserError
from cfg.runtime.files import write_whole


class Results:
    """Results are the finished rows of one kind in a workdir.

    Each is a file `results/<identity>.json`, which is written whole and never changed. Processes that share a workdir
    write each their own. `results.jsonl` has all of them, a line a row in `Row.order`, for pandas and for people;
    nothing of the project reads it. Rows of `--mode=evaluate_npz` are in `evaluate_npz/` and `evaluate_npz.jsonl`.
    """

    def __init__(self, workdir: str | Path, kind: type[Row] | type[FileRow] = Row):
        self.folder, self._kind = Path(workdir) / kind.FOLDER, kind

    def path(self, identity: str) -> Path:
        """Returns the path of the file of a row."""
        return self.folder / f'{identity}.json'

    def __contains__(self, identity: str) -> bool:
        return self.path(identity).exists()

    def check(self) -> None:
        """Looks whether an older version worked here, which had all rows in one file or in one file a job.

        Raises:
          UserError: when there are such files, and no folder of rows beside them.
        """
        old = sorted(self.folder.parent.glob(f'{self.folder.name}*.jsonl'))
        if old and not self.folder.is_dir():
            raise UserError(
                f'{old[0]} is of an older version, or its folder {self.folder.name}/ is gone, and it is not read: '
                f'delete it or move it away, and --mode={self._kind.MODE} measures its rows again.'
            )

    def read(self) -> list[Row] | list[FileRow]:
        """Returns all rows, in their order; [] where there are none.

        Raises:
          UserError: when a file is not as it was written, or as in `check`.
        """
        self.check()
        rows = [self._kind.from_json(path.read_bytes(), str(path)) for path in self._files()]
        return sorted(rows, key=lambda row: row.order)

    def swept(self) -> list[Row]:
        """Returns the rows that are neither of a search nor twins, likewise."""
        return [row for row in self.read() if not row.apart]

    def write(self, row: Row | FileRow) -> None:
        """Writes the file of a row, and then that of all rows.

        Raises:
          UserError: when a number is not finite, which JSON cannot say.
        """
        path = self.path(row.identity)
        if row.not_finite:
            raise UserError(
                f'{path} is not written: {", ".join(row.not_finite)}; see whether the weights, the reference and the '
                'images are right.'
            )
        write_whole(path, f'{row.to_json(indent=1)}\n'.encode())
        self.write_lines()

    def write_lines(self) -> None:
        """Writes the file of all rows anew, until it has all: another process may finish one meanwhile."""
        while self.folder.is_dir():  # without it the lines would be taken for those of an older version
            files = self._files()
            lines = ''.join(f'{row.to_json()}\n' for row in self.read())
            write_whole(self.folder.with_suffix('.jsonl'), lines.encode())
            if self._files() == files:
                return

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob('[!.]*.json'))
