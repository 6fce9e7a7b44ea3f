"""What a model file says of itself, so that every stage knows a SADNet from another network."""

import json
from pathlib import Path
from typing import Any

from common.errors import ModelError

METADATA_KEY = "sadnet"
"""Key of a JSON object in the metadata of weights (safetensors: the network's configuration) and of ONNX files
(`export/to_onnx.py` lists its entries)."""

FORMAT = 1
"""Of an ONNX file: its entry `format`."""


def model_details(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What `export/to_onnx.py` wrote into an ONNX file's metadata. Raises ModelError where it is not that file's, or of
    another format."""
    try:
        details = json.loads(metadata.get(METADATA_KEY, ""))
    except ValueError:
        details = None
    if not isinstance(details, dict):
        raise ModelError(
            f"{path} is another network: expected one written by export/to_onnx.py (with '{METADATA_KEY}' in its "
            "metadata), found none"
        )
    if details.get("format") != FORMAT:
        raise ModelError(
            f"{path}: expected format {FORMAT}, found {details.get('format')!r}: export it again with this checkout"
        )
    return details
