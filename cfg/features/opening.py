"""Opens the feature network that a config calls for."""

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from cfg.data.images import to_float
from cfg.features.network import (
    COLOUR_IMAGES,
    DINOV2,
    INCEPTION,
    FeatureNetwork,
    check_images,
    default_cache,
    dinov2,
    inception,
    on_devices,
    with_second,
)
from cfg.features.small_classifier import small_classifier
from cfg.runs.trained import TrainedRun
from cfg.settings.data import open_source, spec_of
from cfg.settings.table import feature_names


def open_features(config: ConfigDict, image_shape: tuple[int, int, int], what: str) -> FeatureNetwork:
    """Opens the feature network of a config, with its classifier (`config.eval.classifier_workdir`) and DINOv2, if any.

    Raises:
      UserError: when it does not fit the images (H, W, C) that `what` holds, or its weights are missing or damaged.
    """
    options = config.eval
    cache, names = default_cache(options.cache_dir), feature_names(options.features)
    if 'dinov2' in names:
        check_images(COLOUR_IMAGES, image_shape, what, DINOV2)
    if 'inception' in names:
        check_images(COLOUR_IMAGES, image_shape, what, INCEPTION)
        network = inception(options.weights, cache, batch_size=options.batch_size)
    else:
        train = open_source(config, 'train')
        check_images(train.image_shape, image_shape, what, f'the small classifier of {train.name}')
        network = small_classifier(cache, train, batch_size=options.batch_size)
    network = _with_classifier(config, network, image_shape) if options.classifier_workdir else network
    if 'dinov2' not in names:
        return network
    size, resize = options.batch_size, options.dinov2_resize
    return with_second(network, dinov2(options.dinov2_weights, cache, resize=resize, batch_size=size))


def classifies(options: ConfigDict) -> bool:
    """Tells whether the network of `config.eval` gives classes of the data set, for the accuracy of labelled images."""
    return 'inception' not in feature_names(options.features) or bool(options.classifier_workdir)


def _with_classifier(config: ConfigDict, network: FeatureNetwork, image_shape: tuple[int, int, int]) -> FeatureNetwork:
    """Gives the same features, and the classes of a noise-aware classifier, which is told that there is no noise."""
    what = 'config.eval.classifier_workdir'
    classifier = TrainedRun.beside(config, config.eval.classifier_workdir, what=what, kind='classifier')
    classifier.check_images(config, image_shape, spec_of(config).num_classes)

    def classes(params, images):
        logits_fn = classifier.bind(params)
        return jnp.argmax(logits_fn(to_float(images), jnp.full(len(images), classifier.logsnr_max)), axis=1)

    run = on_devices(classes, classifier.params(), batch_size=config.eval.batch_size)
    return dataclasses.replace(
        network,
        image_shape=tuple(image_shape),
        extract=lambda images: network.extract(images)._replace(classes=run(images)),
        classifier=f'{"imported" if classifier.imported else "noise-aware"} classifier {classifier.sha256[:16]}',
        plain=network,
    )
