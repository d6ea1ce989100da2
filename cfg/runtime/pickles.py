"""Unpickles no more than was admitted: a pickle calls whatever it names, so what it may name is a table."""

import pickle
from collections.abc import Mapping
from typing import Any, ClassVar


class RefusedError(Exception):
    """Carries the rest of the sentence 'FILE ...' for the user."""


class Restricted(pickle.Unpickler):
    """This unpickler finds in a file what `admitted` has, and refuses all else.

    Attributes:
      admitted: {(module, name): what stands for it}; no value has attributes that a pickle could set.
      holds: what such a file holds, as 'array'.
      remedy: the end of the sentence of a refusal.
    """

    admitted: ClassVar[Mapping[tuple[str, str], Any]]
    holds: ClassVar[str]
    remedy: ClassVar[str] = ''

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name; raises a RefusedError for one that is not admitted."""
        if (module, name) not in self.admitted:
            wanted = f'{module}.{name}'[:100]
            raise RefusedError(
                f'wants to run {wanted!r}, which no {self.holds} needs and which was not run{self.remedy}'
            )
        return self.admitted[module, name]
