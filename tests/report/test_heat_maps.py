"""The heat map of FID over the length of the average and w."""

import pytest

from cfg.report import heat_maps
from cfg.report.curves import group_curves
from tests.report.rows import row_of


def curves_of(lengths, **fids):
    """Curves at steps 300 and 1200, whose FID is their length and w, but for those of step 1200 that are given."""
    rows = []
    for step in (300, 1200):
        for length in lengths:
            for w in (0.0, 0.5, 1.0):
                fid = 1.0 + (length or 0.0) + w
                fid = fids.get(f'at_{length}_{w:g}', fid) if step == 1200 else fid
                digest = f'{step} {length}'
                rows.append(row_of(step=step, ema_length=length, params_sha256=digest, w=w, fid=fid))
    return group_curves(rows)


def test_one_length_has_no_heat_map():
    assert heat_maps.figure(curves_of([None])) is None


@pytest.mark.parametrize('value', [0.25, None])
def test_each_step_has_a_panel_with_its_best_framed(value):
    figure = heat_maps.figure(curves_of([None, 0.05, 0.1], **{'at_0.05_0.5': value}))
    early, late = figure.axes
    for axes in (early, late):
        assert [text.get_text() for text in axes.get_yticklabels()] == ['decay', '0.05', '0.1']
        assert [text.get_text() for text in axes.get_xticklabels()] == ['0', '0.5', '1']
    assert [axes.get_title(loc='left') for axes in figure.axes] == [
        f'FID (lower is better), step {step}' for step in ('300', '1,200')
    ]
    texts = [text.get_text() for text in late.texts]
    assert texts == ['1.00', '1.50', '2.00', '1.05', '-' if value is None else '0.25', '2.05', '1.10', '1.60', '2.10']
    (frame,) = late.patches
    assert frame.get_xy() == ((0, 0) if value is None else (1, 1))


def test_parameters_that_are_not_averaged_are_left_out():
    rows = [row for curve in curves_of([None, 0.05]) for row in curve.rows]
    plain = [row_of(step=1200, ema=False, params_sha256='p', w=w, fid=0.1) for w in (0.0, 0.5)]
    assert [len(axes.texts) for axes in heat_maps.figure(group_curves([*rows, *plain])).axes] == [6, 6]
