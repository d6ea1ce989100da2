"""Names every field, once. The other configs change only what differs.

Values without another source are those of the paper (Ho & Salimans 2022) for 64x64 ImageNet, or of ADM
(Dhariwal & Nichol 2021, Table 11 and its released flags), whose architecture and hyperparameters the paper takes.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the default config; it is locked, so that a misspelt field is an error."""
    config = ConfigDict()

    # Seeds initial weights, data order, noise and dropout; `sampling.seed` is separate.
    config.seed = 0

    config.data = ConfigDict()
    # 'digits', 'mixture' (exact scores, nothing to train); what TFDS downloads and training reads as it is, 'cifar10',
    # 'imagenet_resized32' or 'imagenet_resized64' (docs/one_gpu.md); or a data set for --mode=prepare_data
    # (docs/imagenet.md): 'tfds:NAME' (any image classification data set of TFDS), 'folder:PATH', or 'imagenet' =
    # 'tfds:imagenet2012'.
    config.data.name = ''
    config.data.dir = ''  # of prepared data, and TFDS's own; '' = TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.image_size = 64  # height and width in pixels
    config.data.crop = 'area'  # how images were made square and small: 'area' (paper) or 'adm'
    config.data.split = 'train'  # what is trained on, and the reference of FID
    config.data.random_flip = True  # mirror half of the training images (ADM's data loader; not stated in the paper)
    # EDM's augmentation, of which the network is told (docs/one_gpu.md): the probability of each change; 0 = none.
    config.data.augment = 0.0
    config.data.workers = 4  # processes that read and decode for training; 0 = threads (benchmarks/input.py)

    # --mode=prepare_data
    config.prepare = ConfigDict()
    config.prepare.workers = 0  # processes that decode and resize; 0 = one a core
    config.prepare.on_error = 'stop'  # at an image that cannot be read or a class without images: 'stop' or 'skip'
    # What names the classes of 'folder:PATH': 'folders', file 'names' before the first _ (ADM), or 'auto', what it has.
    config.prepare.classes_from = 'auto'
    config.prepare.tfds_dir = ''  # of TFDS's own data sets; '' = data.dir
    config.prepare.manual_dir = ''  # of ILSVRC2012's tar files; '' = downloads/manual in tfds_dir

    config.model = ConfigDict()
    config.model.channels = 192  # base width
    config.model.channel_mult = (1, 2, 3, 4)  # one factor a resolution
    config.model.num_res_blocks = 3  # a level
    config.model.attention_resolutions = (32, 16, 8)  # heights of feature maps with attention
    config.model.num_heads = 0  # attention heads; 0 = by head_channels
    config.model.head_channels = 64  # channels a head; 0 = by num_heads
    config.model.dropout = 0.1
    config.model.norm_groups = 32  # of GroupNorm
    # How the network is told of logsnr: 'continuous' (the schedule's u, times 1000), or the step numbers of a network
    # that was trained on ADM's 1000 steps, 'adm_cosine' (released at 64x64) or 'adm_linear' (at all other sizes).
    config.model.time = 'continuous'
    # Which blocks are told the label: 'everywhere' (ADM), or 'decoder', the way up alone; then both predictions of
    # guidance share one pass of the way down and the middle (docs/guidance_pairs.md; not in the paper).
    config.model.label_in = 'everywhere'
    config.model.learned_variance = False  # whether it has ADM's channels for the variance, which are ignored
    # What computes self-attention: 'xla', or a kernel that never writes the scores of all pairs, 'cudnn' (GPU) or
    # 'splash' (TPU). 'auto' = what this platform has; where a kernel does not take a layer's size, XLA does it.
    config.model.attention = 'auto'
    # Of computation, 'float32' or 'bfloat16'; parameters, norms, softmax and output are float32. Accelerators may
    # multiply float32 matrices in fewer bits (JAX_DEFAULT_MATMUL_PRECISION, which is recorded).
    config.model.dtype = 'float32'

    config.diffusion = ConfigDict()
    config.diffusion.prediction = 'eps'  # what the network predicts: 'eps' (paper), 'x' or 'v'
    config.diffusion.logsnr_min = -20.0  # lambda_min
    config.diffusion.logsnr_max = 20.0  # lambda_max

    config.train = ConfigDict()
    # What is trained: 'model' (the diffusion network, config.model) or 'classifier' (of noisy images, config.classifier
    # with the dtype and time of config.model; neither p_uncond nor diffusion.prediction concerns it). Two more models
    # take w as an input, and sample with the guidance 'one_pass' (docs/students.md): 'student', to which the guidance
    # of a teacher is distilled (Meng et al. 2022), and 'guidance_free', trained with it from the start (Chen et al.
    # 2025).
    config.train.kind = 'model'
    config.train.w = (0.0, 4.0)  # the range of w that the latter two learn (Meng et al.)
    config.train.teacher_workdir = ''  # of a student's teacher, a model of the same network
    config.train.teacher_step = -1  # its checkpoint; -1 = the newest
    config.train.teacher_guidance = 'cfg'  # the rule that guides it
    # Steps of a student whose one DDIM step is two of its teacher's, on the grid 'nested'; 0 = it learns the teacher's
    # predictions at all levels.
    config.train.student_steps = 0
    config.train.student_sampler = 'ddim'  # the sampler of such a student; 'forth_and_back' is the stochastic one
    # Of a student's errors: 'truncated' = the larger of those of x and eps (Salimans & Ho 2022), 'eps', 'x' or 'v'.
    config.train.weighting = 'truncated'
    # Of the errors of 'model' and 'guidance_free' (docs/one_gpu.md): '' = of what the network predicts, the paper's,
    # 'eps', 'v' (Salimans & Ho 2022), 'edm' (Karras et al. 2022) or 'sigmoid' (Kingma & Gao 2023).
    config.train.loss_weight = ''
    config.train.sigmoid_bias = 2.0  # b of the weight sigmoid(b - logsnr)
    config.train.times = 'paper'  # the levels that are drawn: p(logsnr) of the paper, or EDM's lognormal ('edm')
    config.train.num_steps = 400_000
    config.train.batch_size = 2048  # over all devices
    config.train.grad_accum = 1  # pieces of a device's share, one after the other; saves memory
    config.train.remat = False  # compute each block again in the backward pass; saves memory
    config.train.p_uncond = 0.1  # probability of the null label (Alg. 1); 0.1, 0.2 and 0.5 in the paper
    config.train.stratified = False  # one u in each of batch_size equal strata; not in the paper
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 0  # linear warm-up
    config.train.decay_steps = 0  # the learning rate falls linearly to 0 at this step (ADM's classifiers); 0 = constant
    config.train.beta1 = 0.9
    config.train.beta2 = 0.999
    config.train.weight_decay = 0.0  # decoupled (AdamW)
    config.train.grad_clip = 0.0  # largest global norm, after the mean over devices; 0 = no clipping (ADM)
    # Steps in a row with a loss or gradient that is not finite, left out before training stops; 0 = stop at the first.
    config.train.max_skipped = 0
    config.train.ema_decay = 0.9999  # of the average that is sampled from
    # Lengths of more averages, in shares of the training, of which any other is made afterwards: (0.05, 0.1) is Karras
    # et al.'s (2024); () = none. Each checkpoint holds them (docs/ema.md).
    config.train.ema_lengths = ()
    config.train.log_every = 100  # steps
    config.train.wandb_project = ''  # of Weights & Biases, which then gets what TensorBoard gets (docs/pods.md)
    # Steps between sample grids in TensorBoard, or, of a classifier, between accuracies on held-out images; 0 = none.
    config.train.sample_every = 10_000
    config.train.checkpoint_every = 10_000  # steps
    config.train.keep_last = 3  # newest checkpoints that are kept ...
    config.train.keep_every = 100_000  # ... besides those at multiples of this; 0 = only the newest

    config.sampling = ConfigDict()
    # Rules, samplers and grids by name, with options, such as 'apg(eta=0.0, interval=(-3, 5))': docs/guidance.md.
    config.sampling.guidance = 'cfg'  # Eq. 6
    config.sampling.sampler = 'ancestral'  # Alg. 2
    config.sampling.grid = 'paper'  # of logsnr
    config.sampling.num_steps = 256  # T (not stated for 64x64; the authors' related work)
    config.sampling.logvar_interp = 0.3  # v of Eq. 4; 0.3 at 64x64, 0.2 at 128x128
    config.sampling.clip_x = True  # clip the estimate of x to [-1, 1] at every step (not stated in the paper)
    config.sampling.seed = 1  # of the noise; sample i at every w starts from the same noise
    config.sampling.batch_size = 256  # over all devices
    config.sampling.ema = True  # sample from the averaged parameters
    config.sampling.ema_length = 0.0  # of their average, such as 0.08 (docs/ema.md); 0 = that by train.ema_decay
    config.sampling.rounding = 'round'  # of grey levels: 'round' (EDM, DiT, SiT) or 'truncate' (ADM)
    config.sampling.step = -1  # checkpoint of --mode=sample; -1 = the newest
    config.sampling.uncond_workdir = ''  # run of a second model for the unconditional eps of Eq. 6; '' = the null label
    config.sampling.w = (0.0, 1.0, 3.0)  # guidance strengths of --mode=sample (Eq. 6); w = s - 1
    config.sampling.labels = ()  # classes of --mode=sample, repeated in this order; () = all classes
    config.sampling.num_samples = 64  # of --mode=sample, for each w

    config.eval = ConfigDict()
    config.eval.w = (*(i / 10 for i in range(10)), 1.0, 2.0, 3.0, 4.0)  # the rows of the paper's tables
    config.eval.num_samples = 50_000  # for each w
    # The sweep is the product of w and the next nine. A guidance rule may bring a w of its own: 'cfg(w=(0.5, 1.0))'.
    config.eval.guidance = ()  # rules; () = sampling.guidance
    config.eval.sampler = ()  # () = sampling.sampler
    config.eval.grid = ()  # () = sampling.grid
    config.eval.steps = ()  # checkpoints to evaluate; () = the newest
    config.eval.ema = ()  # averaged parameters or not: (True, False) = both; () = sampling.ema
    config.eval.ema_length = ()  # of averages, 0 among them for that by train.ema_decay; () = sampling.ema_length
    config.eval.num_steps = ()  # values of T; () = sampling.num_steps
    config.eval.logvar_interp = ()  # values of v; () = sampling.logvar_interp
    config.eval.seeds = ()  # of noise and random labels; () = sampling.seed
    config.eval.job = '1/1'  # this command's share of the rows: 'i/n' of n jobs that work on one workdir
    config.eval.labels = 'random'  # how labels are drawn: 'random' (uniform) or 'balanced'
    config.eval.is_split_size = 5000  # samples a split of the inception score (ADM's evaluator)
    # The feature network: 'inception' (of published numbers), or 'small_classifier', trained on the data set itself.
    # 'inception, dinov2' measures FD-DINOv2 beside, in one pass over the samples.
    config.eval.features = 'inception'
    config.eval.weights = ''  # of Inception: one of its three public files; '' = what is in cache_dir
    config.eval.dinov2_weights = ''  # of DINOv2 ViT-L/14: Meta's .pth or safetensors; '' = what is in cache_dir
    config.eval.dinov2_resize = 'torch'  # to its 224 pixels: as EDM2's tables ('torch') or as dgm-eval ('pil')
    config.eval.cache_dir = ''  # of feature networks and statistics of real images; '' = ~/.cache/cfg_diffusion
    config.eval.batch_size = 64  # images at a time in the feature network, over all devices
    # What samples are compared with: an npz (ADM's files, or of --mode=stats); '' = the images of data.split.
    config.eval.reference = ''
    config.eval.samples = ''  # of --mode=evaluate_npz: an npz of images in ADM's layout
    config.eval.neighbours_dtype = 'float32'  # of precision and recall; 'float16' is how ADM's evaluator computes them
    config.eval.kid_subsets = 100
    config.eval.kid_subset_size = 1000
    config.eval.classifier_workdir = ''  # of a noise-aware classifier, for accuracy; '' = none
    config.eval.keep_samples = 1000  # samples of each row that are kept in an npz, at most
    config.eval.save_seconds = 60.0  # between two savings of a row that is being measured

    # --mode=tune, the search for the best setting (docs/tuning.md). Values: ours.
    config.tune = ConfigDict()
    config.tune.evaluations = 64  # of networks, for one sample, at most
    config.tune.samples = 750_000  # in all, those at the end included
    config.tune.first_samples = 5000  # of each candidate of the first rung; others have a multiple of it
    config.tune.factor = 3  # one candidate in so many goes on to the next rung
    config.tune.final_seeds = 3  # of the fresh samples at the end, eval.num_samples each
    config.tune.seed = 1000  # of the choice of candidates and the noise of the first rung; further ones follow
    # The candidates are the product of these. The guidance 'one_pass' is for networks that take w, the others are not.
    config.tune.w = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    config.tune.guidance = (  # rules; () = sampling.guidance
        'cfg',
        'cfg(interval=(-3, 3))',
        'cfg(interval=(-1, 5))',
        "cfg(schedule='linear')",
        "cfg(schedule='cosine')",
        'apg',
        'one_pass',
    )
    config.tune.sampler = ('ddim', 'dpm_solver_2m', 'dpm_solver_2m(stochastic=True)')  # () = sampling.sampler
    config.tune.grid = ('paper', 'uniform', 'nested')  # () = sampling.grid
    config.tune.num_steps = ()  # values of T; () = the largest that the evaluations pay for
    config.tune.steps = ()  # checkpoints; () = the newest
    config.tune.ema = ()  # averaged parameters or not; () = sampling.ema

    # --mode=stats
    config.stats = ConfigDict()
    config.stats.path = ''  # of the npz; '' = in eval.cache_dir
    config.stats.num_images = 10_000  # images in it, for precision, recall and KID (ADM's number)

    config.report = ConfigDict()
    config.report.title = ''  # '' = made from the data's name
    config.report.w = (0.0, 0.5, 1.0, 3.0)  # panels of the grids
    config.report.grid_shape = (6, 6)  # rows and columns of a panel
    config.report.one_class = 0  # the class of the single-class grid
    # --mode=compare: samples, at most sampling.batch_size, that measure the effective strength of each row, whose twin
    # is scored, too; 0 = no twins.
    config.report.twin_samples = 0
    config.report.workdirs = ()  # more runs to draw beside this one, e.g. of another p_uncond
    config.report.paper = ''  # the paper's numbers beside ours: 'table1_imagenet64' or 'table2_imagenet128'; '' = none

    # Several processes (docs/pods.md).
    config.processes = ConfigDict()
    config.processes.start_seconds = 300.0  # for all of them to start
    # Without any progress, after which a run counts as hung and ends; more than compilation takes.
    config.processes.hang_seconds = 1800.0

    config.export = ConfigDict()
    # What --mode=export writes ('' = export/ in the workdir), and --mode=import_export reads.
    config.export.dir = ''

    # What --mode=import_adm reads.
    config.adm = ConfigDict()
    config.adm.checkpoint = ''  # a state dict of openai/guided-diffusion (.pt)
    config.adm.kind = 'model'  # 'model' (the diffusion network) or 'classifier'
    config.adm.new_attention_order = True  # its flag use_new_attention_order: True at 64x64, False at all other sizes

    # The noise-aware classifier (ADM's, released flags for 64x64).
    config.classifier = ConfigDict()
    config.classifier.channels = 128
    config.classifier.channel_mult = (1, 2, 3, 4)
    config.classifier.num_res_blocks = 4  # a level
    config.classifier.attention_resolutions = (32, 16, 8)
    config.classifier.head_channels = 64
    config.classifier.norm_groups = 32
    config.classifier.dropout = 0.0

    # The paper's Fig. 2, drawn by --mode=report when data.name = 'mixture', with the sampler, grid and number of steps
    # of config.sampling. Values: ours, read off the figure.
    config.mixture = ConfigDict()
    config.mixture.means = ((0.0, 0.8), (-0.693, -0.4), (0.693, -0.4))
    config.mixture.stddev = 0.5  # of every (isotropic) component
    config.mixture.w = (0.0, 0.5, 1.0, 2.0, 4.0)
    config.mixture.num_samples = 20_000  # of each class, for each w
    config.mixture.extent = 2.5  # the panels show [-extent, extent]^2
    # The study beside it: what each rule draws at each w, and each sampler at each T (docs/mixture.md).
    config.mixture.guidance = (  # rules of cfg/diffusion/rules; () = Fig. 2 alone
        'cfg',
        "cfg(against='random')",
        'cfg(interval=(-2.1, 2.5))',
        "cfg(schedule='linear')",
        "cfg(schedule='cosine')",
        'autoguidance',
        'cfg_plus_plus(w=(-0.8, -0.6, -0.4, -0.2, 0.0))',  # its lambda is 1 + w, in [0, 1]
        'rescale',
        'apg',
        'classifier',
        "classifier(model='unconditional')",
        'scaled_score',
        'temperature',
    )
    config.mixture.weaker_stddev = 0.75  # of the components of the model that autoguidance compares with
    # Every rule with those that it fits; its panels show the first.
    config.mixture.rule_samplers = ('dpm_solver_2m', 'dpm_solver_2m(stochastic=True)', 'ancestral', 'ddim', 'heun')
    config.mixture.num_steps = 64  # T of the rules
    config.mixture.samplers = ('ancestral', 'ddim', 'dpm_solver_2m', 'dpm_solver_2m(stochastic=True)', 'heun')
    config.mixture.steps = (16, 32, 64, 128, 256)  # values of T of the samplers
    config.mixture.steps_w = (0.0, 2.0)  # strengths of Eq. 6 with them
    # Samplers that aim at the density, and what they are compared with, each with its T; Eq. 6 at every w > 0.
    config.mixture.tilted = (
        ('dpm_solver_2m(stochastic=True)', 64),
        ('feynman_kac(particles=4)', 64),
        ('feynman_kac(particles=16)', 64),
        ('feynman_kac(particles=64)', 64),
        ('gibbs', 32),
        ('gibbs(repeats=8, logsnr=3.0)', 256),
        ('gibbs(repeats=32, logsnr=4.0, first=0.1)', 512),
    )
    config.mixture.grid = 'uniform'  # of all these
    config.mixture.seed_samples = 5000  # of each class, for each seed; for Fig. 2 it is num_samples
    config.mixture.num_seeds = 3  # sampling.seed and those after it; `tilted` has the first alone

    return config.lock()
