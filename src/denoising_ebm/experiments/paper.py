"""The figures that the paper prints, and why ours may differ."""

from __future__ import annotations

#: Tables 1 and 2: model to FID and, where printed, IS; 50,000 samples.
TABLE1: dict[str, tuple[float, float | None]] = {
    "Denoising-EBM": (21.24, 7.86),
    "NCSN": (25.32, 8.87),
    "IGEBM": (40.58, 6.02),
    "MDSM": (31.7, 8.31),
    "DDPM": (7.76, 9.03),
}
TABLE2: dict[str, tuple[float, float | None]] = {
    "Denoising-EBM": (14.1, None),
    "NCSN": (25.3, None),
    "NVAE": (14.74, None),
    "BiDVL": (17.24, None),
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
#: Table 4: AUROC with CIFAR-10 as the normal set.
TABLE4: dict[str, float] = {"svhn": 0.99, "celeba": 0.86, "cifar100": 0.62, "interpolation": 0.99}
#: Section 5.1: seconds per 64 CIFAR-10 images.
SECONDS_TWO_STAGE, SECONDS_NCSN = 8.67, 120.11
SPEEDUP = SECONDS_NCSN / SECONDS_TWO_STAGE

REASONS: dict[str, str] = {
    "generation": (
        "The paper's network, batch and training length are not in its text. Its FID is of 50,000 samples on Inception's "
        "features; the distance here is on EfficientNet-lite0's, has another scale and compares within this table only. "
        "References here are test images, where published FIDs mostly take the training set. "
        "Training by denoising alone and chains of the first term of the gradient (eq. 21) are our default, since the exact "
        "gradient of a denoising-trained energy leads chains along the data into saturation: for Gaussian data the "
        "energy is much flatter than the density."
    ),
    "ablation": (
        "The paper's optimum, sigma_max = 1, belongs to chains that start from semantic images and to its training of "
        "unknown length. The coarse structure of images has a standard deviation above 0.5, so a chain that starts at "
        "sigma = 1 depends on the semantic image being right. S is the number of levels that training draws from; "
        "chains take the same steps in all rows of one range."
    ),
    "detection": (
        "The paper's score, the energy at sigma = 0.05, is low wherever there is little to see: smooth SVHN digits come out "
        "as more normal than CIFAR-10 photographs, as with most likelihoods of deep models. The default detector looks at "
        "features of the same passes instead."
    ),
    "speed": (
        "The paper compares its 135 steps with NCSN's 1,000 on NCSN's own network. Here both run on one network, so the "
        "ratio of evaluations is that of the samplers; that of times also depends on the machine."
    ),
}
