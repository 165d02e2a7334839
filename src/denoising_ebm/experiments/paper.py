"""The figures that the paper prints."""

from __future__ import annotations

#: Tables 1 and 2: model to FID; 50,000 samples.
TABLE1: dict[str, float] = {
    "Denoising-EBM": 21.24,
    "NCSN": 25.32,
    "IGEBM": 40.58,
    "MDSM": 31.7,
    "DDPM": 7.76,
}
TABLE2: dict[str, float] = {
    "Denoising-EBM": 14.1,
    "NCSN": 25.3,
    "NVAE": 14.74,
    "BiDVL": 17.24,
}
#: Table 3: FID of 1,000 samples, in the order of `settings.ABLATIONS`.
TABLE3: dict[str, float] = {
    "sigma from 3, S = 128": 66.57,
    "sigma from 2, S = 128": 60.81,
    "sigma from 1, S = 128": 50.02,
    "sigma from 0.5, S = 128": 55.23,
    "sigma from 1, S = 64": 60.02,
    "sigma from 1, S = 256": 51.10,
}
#: Table 4: AUROC with CIFAR-10 as the in-distribution set.
TABLE4: dict[str, float] = {"svhn": 0.99, "celeba": 0.86, "cifar100": 0.62, "interpolation": 0.99}
#: Section 5.1: seconds per 64 CIFAR-10 images.
SECONDS_TWO_STAGE, SECONDS_NCSN = 8.67, 120.11
SPEEDUP = SECONDS_NCSN / SECONDS_TWO_STAGE
