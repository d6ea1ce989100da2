"""Tables for LaTeX (package booktabs)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ESCAPED = {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '±': r'$\pm$',
    '↓': r'$\downarrow$',
    '↑': r'$\uparrow$',
} | {character: f'\\{character}' for character in '&%$#_{}'}
_SIGNED = re.compile(r'[+-][0-9.]+')
_SPECIAL = re.compile('|'.join(map(re.escape, _ESCAPED)))


@dataclass(frozen=True)
class Cell:
    """Text of a cell, which may be bold and may span columns."""

    text: str
    bold: bool = False
    columns: int = 1

    def __str__(self) -> str:
        text = rf'\textbf{{{escape(self.text)}}}' if self.bold else escape(self.text)
        return rf'\multicolumn{{{self.columns}}}{{c}}{{{text}}}' if self.columns > 1 else text


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, a number's sign as a sign."""
    if _SIGNED.fullmatch(text):
        return f'${text}$'
    return _SPECIAL.sub(lambda match: _ESCAPED[match[0]], text)


def tabular(
    columns: str, heads: Sequence[Sequence[Cell]], groups: Sequence[Sequence[Sequence[Cell]]], notes: Sequence[str] = ()
) -> str:
    """A tabular environment.

    Args:
        columns: LaTeX's column types, e.g. 'lrr'.
        heads: lines above the first rule; a line under which cells span gets rules under those.
        groups: lines of the body, with a rule between groups.
        notes: sentences that become comments above the table, one a line.
    """
    lines = [f'% {note}' for note in [*notes, r'Needs \usepackage{booktabs}.']]
    lines += [rf'\begin{{tabular}}{{{columns}}}', r'\toprule']
    for head in heads:
        lines += [_line(head), *_rules(head)]
    for number, group in enumerate(groups):
        lines.append(r'\midrule' if number == 0 else r'\addlinespace')
        lines += [_line(cells) for cells in group]
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


def _line(cells: Sequence[Cell]) -> str:
    return ' & '.join(map(str, cells)) + r' \\'


def _rules(cells: Sequence[Cell]) -> list[str]:
    rules, first = [], 1
    for cell in cells:
        last = first + cell.columns - 1
        if cell.columns > 1:
            rules.append(rf'\cmidrule(lr){{{first}-{last}}}')
        first = last + 1
    return [' '.join(rules)] if rules else []
