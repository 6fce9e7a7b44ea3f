"""Modulated deformable convolution, SADNet's heart, in every framework's terms. `plugins.op` says what it is."""
