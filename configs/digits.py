"""Trains on scikit-learn's 8x8 digits on a CPU in minutes: the whole method on real data, nothing to download."""

from configs import default


def get_config():
    """Returns the config of `make digits`. The values are ours, chosen for a 2-core CPU."""
    config = default.get_config()

    config.data.name = 'digits'
    config.data.image_size = 8
    config.data.split = 'all'
    config.data.random_flip = False
    config.data.workers = 0

    config.model.channels = 32
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (4,)
    config.model.head_channels = 32
    config.model.norm_groups = 8  # 32 groups of one channel would be instance normalisation

    config.train.num_steps = 1200
    config.train.batch_size = 128
    config.train.stratified = True
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 50
    config.train.grad_clip = 1.0
    config.train.ema_decay = 0.99
    config.train.log_every = 50
    config.train.sample_every = 300
    config.train.checkpoint_every = 100
    config.train.keep_last = 2
    config.train.keep_every = 300

    config.sampling.num_steps = 64
    config.sampling.batch_size = 200
    config.sampling.num_samples = 100

    # The paper's {0, 0.1, ..., 4}, thinned; at an early checkpoint too, where guidance has something to mend.
    config.eval.w = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)
    config.eval.steps = (300, 1200)
    config.eval.num_samples = 1000
    config.eval.labels = 'balanced'
    config.eval.features = 'small_classifier'  # Inception says little of 8x8 grey images
    config.eval.batch_size = 200
    config.eval.kid_subsets = 50
    config.eval.kid_subset_size = 500

    config.report.w = (0.0, 0.3, 1.0, 4.0)
    config.report.grid_shape = (8, 8)
    config.report.one_class = 3

    return config
