"""The mathematics: arrays in, arrays out."""

from rntk_dist.kernel.rntk import RNTK

__all__ = ["RNTK"]
