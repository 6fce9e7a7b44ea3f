"""Denoising with an exported model: pictures in, pictures out. Needs no PyTorch."""

from runtime.denoiser import Denoiser

__all__ = ["Denoiser"]
