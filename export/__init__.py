"""From `weights.safetensors` to an ONNX file, its parity with PyTorch checked."""
