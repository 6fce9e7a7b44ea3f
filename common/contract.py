"""What a model file says of itself, so that every stage knows a SADNet from another network."""

METADATA_KEY = "sadnet"
"""Key of a JSON object in the metadata of weights (safetensors: the network's configuration) and of ONNX files
(`export/to_onnx.py` lists its entries)."""
