"""Parameters and multiply-adds are those of the network, counted twice: on the network, and layer by layer."""

from typing import Any

import pytest

from runtime.roofline import layers
from train.cost import cost
from train.sadnet import SADNetConfig

CONFIGS: list[dict[str, Any]] = [
    {},
    {"variant": "official"},
    {"channels": 1},
    {"context": False},
    {"offset_transfer": False},
    {"rsab": False, "offset_transfer": False},
    {"variant": "official", "rsab": False, "offset_transfer": False, "context": False},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("width", "height"), [(480, 320), (72, 8)])
def test_cost_is_that_of_the_layers_one_by_one(config: dict[str, Any], width: int, height: int) -> None:
    """`runtime/roofline.py` lists them without the network."""
    counted, listed = cost(SADNetConfig(**config), width, height), layers(height, width, config)
    assert counted.parameters == sum(layer.parameters for layer in listed)
    assert counted.macs == sum(layer.macs for layer in listed)
    deformable = [layer.macs for layer in listed if layer.name.endswith("dcnpack")]
    assert counted.deformable_macs == sum(deformable)
    assert bool(counted.sampling_macs) == bool(deformable)


def test_known_figures() -> None:
    """Parameters of the authors' released code; the deformable part worked out by hand at one pixel of each scale."""
    assert cost(SADNetConfig("official"), 480, 320).parameters == 4_234_723
    found = cost(SADNetConfig(), 8, 8)
    assert found.deformable_macs == sum(
        9 * width**2 * (8 >> scale) ** 2 for scale, width in enumerate((32, 64, 128, 256))
    )
    samples = sum(9 * width * (8 >> scale) ** 2 for scale, width in enumerate((32, 64, 128, 256)))
    assert found.sampling_macs == 5 * samples
