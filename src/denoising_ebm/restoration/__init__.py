"""Restoration: what an explicit model of images gives for any linear degradation, without training for it."""
