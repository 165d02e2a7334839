from __future__ import annotations

import math

import pytest

from denoising_ebm.utils.extras import load_extra


def test_a_missing_extra_is_named() -> None:
    assert load_extra("math", "eval", "roots need math") is math
    message = r"^SSIM needs nothing: pip install 'denoising-ebm\[eval\]'$"
    with pytest.raises(ValueError, match=message):
        load_extra("no_such_package", "eval", "SSIM needs nothing")
