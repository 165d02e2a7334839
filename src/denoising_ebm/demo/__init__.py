"""The demo: train on the bundled images, draw samples, look for odd images, and put it all on one page."""

from denoising_ebm.demo.run import FAST, FULL, DemoResult, Sizes, paste_squares, run_demo

__all__ = ["FAST", "FULL", "DemoResult", "Sizes", "paste_squares", "run_demo"]
