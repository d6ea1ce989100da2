"""Reads short texts such as 'apg(eta=0.0, interval=(-3, 5))' into frozen dataclasses, and prints them.

A class derives from `Described` and declares its options with `number`, `choice` and the like, which check a value
wherever it is made, in Python or in a text. Two texts that mean the same are printed alike.
"""

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from cfg.runtime.errors import UserError

_LARGEST = float(np.finfo(np.float32).max)


def is_finite(value: Any) -> bool:
    """Tells whether a value is a number that is finite in float32, in which samples are computed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def finite(value: Any) -> float:
    """Reads a number that is finite in float32; raises ValueError on anything else."""
    if not is_finite(value):
        raise ValueError
    return float(value)


def option(
    default: Any,
    read: Callable[[Any], Any],
    expected: str,
    *,
    printed: bool = True,
    parsed: bool = True,
    needs: str = '',
) -> Any:
    """Declares an option of a `Described` class, which must be `expected`, in words.

    Args:
      read: value -> value; it raises TypeError or ValueError on one that is out of range.
      printed: whether it is part of what the text says.
      parsed: whether a text may give it.
      needs: the option without which it changes nothing.
    """
    metadata = {'read': read, 'expected': expected, 'printed': printed, 'parsed': parsed, 'needs': needs}
    return dataclasses.field(default=default, metadata=metadata)


def number(
    default: float | None,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    optional: bool = False,
    **more: Any,
) -> Any:
    """Declares a number in [low, high], or (low, high] if it must be `above`; `optional` ones may be None."""

    def read(value):
        if value is None and optional:
            return None
        if not low <= finite(value) <= high or (above and value == low):
            raise ValueError
        return float(value)

    bounds = f'above {low:g}' if above else f'at least {low:g}'
    words = f'a number {bounds}' if math.isinf(high) else f'a number from {low:g} to {high:g}'
    words = 'a finite number' if math.isinf(low) else words
    return option(default, read, f'{words}, or None' if optional else words, **more)


def whole(default: int, low: int, words: str) -> Any:
    """Declares a whole number that is `low` or more; `words` say so to the user."""

    def read(value):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError
        return value

    return option(default, read, words)


def choice(*values: Any) -> Any:
    """Declares one of several values; the first is the default."""

    def read(value):
        if isinstance(value, bool) is not isinstance(values[0], bool) or value not in values:
            raise ValueError
        return value

    return option(values[0], read, 'one of ' + ', '.join(map(repr, values)))


def folder() -> Any:
    """Declares a folder, which says where something lies and not what it is; '' for none."""

    def read(value):
        if not isinstance(value, str):
            raise TypeError
        return value

    return option('', read, 'the workdir of a run', printed=False)


class Described:
    """A frozen dataclass whose fields are options; a text names it and the options that are not at their defaults."""

    name: ClassVar[str]  # in texts

    def __post_init__(self):
        """Checks every option.

        Raises:
          ValueError: names the first one that is out of range, or changes nothing without another one.
          TypeError: when a field is declared by no function of this file.
        """
        for field in dataclasses.fields(self):
            if not field.metadata:
                raise TypeError(f'{field.name} must be declared as an option, such as options.number(1.0)')
            try:
                value = field.metadata['read'](getattr(self, field.name))
            except (TypeError, ValueError):
                raise ValueError(f'{field.name} must be {field.metadata["expected"]}') from None
            object.__setattr__(self, field.name, value)
        for field in dataclasses.fields(self):
            needs = field.metadata['needs']
            if needs and not getattr(self, needs) and getattr(self, field.name) != field.default:
                words = f'{needs}=True' if getattr(self, needs) is False else needs
                raise ValueError(
                    f'{field.name} changes nothing without {words}: give {words}, or leave {field.name} out'
                )

    @property
    def text(self) -> str:
        """Returns the canonical text, which says what it is, and not where folders lie."""
        return self._text(lambda field: field.metadata['printed'])

    @property
    def whole_text(self) -> str:
        """Returns the text of all options, from which `parse` makes the same again."""
        return self._text(lambda field: True)

    def _text(self, told: Callable[[dataclasses.Field], bool]) -> str:
        said = [(field, getattr(self, field.name)) for field in self.options() if told(field)]
        changed = [f'{field.name}={value!r}' for field, value in said if value != field.default]
        return f'{self.name}({", ".join(changed)})' if changed else self.name

    @classmethod
    def options(cls) -> list[dataclasses.Field]:
        """Returns the options that a text may give, its own before those that it shares with others of its kind."""
        own = inspect.get_annotations(cls)
        found = [field for field in dataclasses.fields(cls) if field.metadata['parsed']]
        return sorted(found, key=lambda field: field.name not in own)


Kind = TypeVar('Kind', bound=Described)


def parse(text: str, kinds: Sequence[type[Kind]], field: str) -> Kind:
    """Reads a text.

    Args:
      text: 'name' or 'name(option=value, ...)' with literal values.
      kinds: the classes that it may name.
      field: of the config, for what is said to the user.

    Raises:
      UserError: names the field, what is wrong in it, and what it may be.
    """
    name, found = _read_call(text, field)
    named = {kind.name: kind for kind in kinds}
    if name not in named:
        raise UserError(f'config.{field}={text!r} must be one of {", ".join(named)}, with or without options.')
    known = [one.name for one in named[name].options()]
    for wrong in found.keys() - set(known):
        shown = [one for one in known if one != 'w']
        has = f'has {", ".join(shown)}' if shown else 'has none'
        raise UserError(f'config.{field}={text!r} has an option {wrong!r} that {name} does not have: it {has}.')
    try:
        return named[name](**found)
    except ValueError as error:
        raise UserError(f'config.{field}={text!r}: {error}.') from None


def _read_call(text: str, field: str) -> tuple[str, dict[str, Any]]:
    """Splits a text into the name and the options."""
    try:
        node = ast.parse(text.strip(), mode='eval').body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        found = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        if len(found) < len(call.keywords):
            raise ValueError
        return call.func.id, found
    except (AttributeError, SyntaxError, TypeError, ValueError, RecursionError):
        raise UserError(
            f"config.{field}={text!r} must be a name with or without options, each once, such as 'ddim(eta=0.5)'."
        ) from None
