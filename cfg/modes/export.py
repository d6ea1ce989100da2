"""Runs `--mode=export`: a checkpoint becomes a file of safetensors with a card that says what it is."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from cfg.report.results import Results
from cfg.report.tables import text_table
from cfg.runs.exported import FILE, write_exported
from cfg.runs.trained import TrainedRun
from cfg.runtime.files import make_folder, replacing

CARD = 'README.md'


def run(config: ConfigDict, workdir: Path) -> Path:
    """Writes the parameters of `config.sampling.step`, averaged or not as `config.sampling.ema` says; returns the file.

    They go to `config.export.dir`, by default `export/` in the workdir. Beside them is a card: data, training,
    scores, config.
    """
    model = TrainedRun.of_config(config, workdir, config.sampling.step)
    folder = Path(config.export.dir or workdir / 'export')
    make_folder(folder)
    path = write_exported(folder, model.params(), model.meta)
    with replacing(folder / CARD) as file:
        file.write(_card(model, workdir).encode())
    return path


def _card(model: TrainedRun, workdir: Path) -> str:
    """Returns a model card in Markdown."""
    data, train = model.meta.get('data', {}), model.config['train']
    rows = [row for row in Results(workdir).read() if row.source.params_sha256 == model.sha256]
    facts = {
        'data': f'{data.get("name", model.spec.name)}, {data.get("num_examples", "?")} images {model.spec.image_shape}',
        'classes': model.spec.num_classes,
        'data fingerprint': data.get('fingerprint', 'not known'),
        'training step': model.step,
        'batch size': train['batch_size'],
        'parameters': 'averaged' if model.ema else 'of the last step',
        'p_uncond': train['p_uncond'],
        'prediction': model.config['diffusion']['prediction'],
        'SHA-256 of the parameters': model.sha256,
    }
    table = '\n'.join(f'| {name} | {value} |' for name, value in facts.items())
    scores = f'```\n{text_table(sorted(rows, key=lambda row: row.order))}\n```' if rows else 'None were measured.'
    return f"""---
library_name: cfg
license: other
---

# Classifier-free guidance on {data.get('name', model.spec.name)}

A diffusion model (Ho & Salimans 2022, arXiv 2207.12598). Its license is that of the data, which this card cannot know.

| | |
|---|---|
{table}

## Use

`{FILE}` holds every parameter by its path, and in its metadata, under `cfg`, the config as JSON. The
config of the command does not matter here.

```
cfg --config=configs/digits.py --mode=import_export --config.export.dir=FOLDER --workdir=runs/imported
python -c "import cfg; print(cfg.sample(cfg.load('runs/imported'), [0, 1], w=0.3).shape)"
```

## Scores

{scores}

## Config

```
{json.dumps(model.config, indent=1, sort_keys=True)}
```
"""
