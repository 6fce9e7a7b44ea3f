"""Denoising with an exported model: pictures in, pictures out. Imports neither torch nor train nor export."""

from runtime.denoiser import Denoiser

__all__ = ["Denoiser"]
