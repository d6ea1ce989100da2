"""Guidance: Eq. 6, and the rules that followed the paper, each a frozen dataclass whose fields are its options.

A rule says which predictions it needs at a strength w, how it combines them, and what that costs. `w` is the paper's
guidance strength: 0 is the plain conditional model, -1 the unconditional one. Code that speaks of a guidance scale s
means s = 1 + w.
"""

from cfg.diffusion.rules.corrected import Apg, CfgZero, Fdg, Power, Rescale, Tcfg
from cfg.diffusion.rules.costs import Adaptive, RectifiedGradient
from cfg.diffusion.rules.feedback import Feedback
from cfg.diffusion.rules.pairs import Cfg, CfgPlusPlus
from cfg.diffusion.rules.single import Classifier, OnePass, ScaledScore, Temperature
from cfg.diffusion.rules.worse import Autoguidance, BlurredAttention, PerturbedAttention, TimeStep

# Those that a config may name.
RULES = (
    Cfg,
    CfgPlusPlus,
    Rescale,
    Apg,
    Power,
    CfgZero,
    Tcfg,
    Fdg,
    Adaptive,
    RectifiedGradient,
    Feedback,
    Autoguidance,
    TimeStep,
    PerturbedAttention,
    BlurredAttention,
    Classifier,
    ScaledScore,
    Temperature,
    OnePass,
)
