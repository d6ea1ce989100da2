"""Opens the data set of a config."""

from ml_collections import ConfigDict

from cfg.data.built_in import BUILT_IN
from cfg.data.manifest import default_dir, find_manifest, is_preparable
from cfg.data.source import Source
from cfg.data.spec import DataSpec, data_spec


def spec_of(config: ConfigDict) -> DataSpec:
    """Returns the shapes and classes of a config's data set; raises a UserError when it has no images."""
    data = config.data
    return data_spec(data.name, data.image_size, data_dir=data.dir, crop=data.crop)


def open_source(config: ConfigDict, split: str | None = None) -> Source:
    """Opens the data set of a config; `split` takes the place of `config.data.split`.

    Raises:
      UserError: when it has no images, is not prepared, or lacks files or the split.
    """
    data = config.data
    if data.name in BUILT_IN or not is_preparable(data.name):
        spec_of(config)  # says what cannot be
        return BUILT_IN[data.name].open(split or data.split, data.dir)
    from cfg.data.disk import PreparedSource  # here, so that what reads no images needs no Pillow

    where = {'data_dir': default_dir(data.dir), 'size': data.image_size, 'crop': data.crop}
    return PreparedSource(data.name, **where, split=split or data.split)


def open_held_out(config: ConfigDict) -> Source | None:
    """Opens the split that was not trained on; None if the data set has none."""
    data = config.data
    if data.name in BUILT_IN:
        split = BUILT_IN[data.name].held_out
    else:
        manifest = find_manifest(data.name, data_dir=default_dir(data.dir), size=data.image_size, crop=data.crop)
        split = next((name for name in ('validation', 'test') if name in manifest['splits']), None)
    return None if split is None else open_source(config, split)


def describe_split(source: Source) -> str:
    """Returns a split in words."""
    words = {'digits/train': 'real training half', 'digits/test': 'real test half'}
    return f'{words.get(source.name, f"real images {source.name}")} ({len(source)})'
