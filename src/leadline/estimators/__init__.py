"""Bounds on the elicitation distance, one a file: pure functions of draws, numpy in, bits out.

They do not know models, behaviours, files or torch, and they do not choose what to evaluate: the draws they are given
are fresh ones, never those that a cell was chosen on.
"""

from leadline.estimators.code import Cell, cell_of, code_bound, draw
from leadline.estimators.cond import cond
from leadline.estimators.importance import importance
from leadline.estimators.kl import kl, kl_limit_bits
from leadline.estimators.lower import lower
from leadline.estimators.message import Point, decode, encode, message_bound, point_of
from leadline.estimators.mhis import mhis
from leadline.estimators.monte_carlo import monte_carlo
from leadline.estimators.pilot import pilot
from leadline.estimators.splitting import splitting
from leadline.estimators.text import text_bound

__all__ = [
    "Cell",
    "Point",
    "cell_of",
    "code_bound",
    "cond",
    "decode",
    "draw",
    "encode",
    "importance",
    "kl",
    "kl_limit_bits",
    "lower",
    "message_bound",
    "mhis",
    "monte_carlo",
    "pilot",
    "point_of",
    "splitting",
    "text_bound",
]
