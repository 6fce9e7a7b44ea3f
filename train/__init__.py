"""From folders of photos to `weights.safetensors`: the network, its training and its evaluation."""
