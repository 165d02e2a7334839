"""Choices by name that several folders share, without imports that take time."""

from __future__ import annotations

from typing import Literal

#: Arithmetic of the networks; auto is bf16 where that is fast.
Precision = Literal["auto", "fp32", "bf16"]
#: Antialiasing filters.
Resize = Literal["bilinear", "bicubic", "lanczos", "box"]
#: How an image that is not square becomes it: its central square, squeezed, or with borders.
Aspect = Literal["crop", "stretch", "pad"]
#: Of files with several frames or pages.
Frames = Literal["first", "all"]
#: What `restore` estimates: the mean of the posterior, or one sample of it.
Estimate = Literal["mean", "sample"]
#: How large a reproduction of the paper is.
Scale = Literal["tiny", "small", "full"]
#: What the marked pixels of a mask are.
MaskMarks = Literal["missing", "known"]
#: How log-likelihoods are found: by the density network in one pass, by the denoiser and the integral over noise levels, or
#: by the same as a bound for images of 8 bits.
Likelihood = Literal["energy", "immse", "bound"]
