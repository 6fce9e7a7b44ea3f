"""The profile of a step: all of its time, sorted into kinds by names."""

import re
from pathlib import Path

import pytest

from common import cli
from train.step_profile import app, kind_of


def test_the_shares_of_a_step_are_all_of_it(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.run(app, several=("--set",), argv=["--config", str(config), "--steps", "1"])
    assert done.value.code == 0
    out = capfd.readouterr().out
    assert "2x16x16" in out
    assert float(re.findall(r"(\S+) steps/s", out)[0]) > 0
    shares = {kind.strip(): float(share) for kind, share in re.findall(r"^(\D+?) +([\d.]+) %$", out, re.MULTILINE)}
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    assert min(shares["convolutions, backward"], shares["sampling, backward"], shares["sampling, forward"]) > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolutions, backward"),
        ("aten::_slow_conv2d_backward", "convolutions, backward"),
        ("aten::mkldnn_convolution", "convolutions, forward"),
        ("cudnn_infer_ampere_scudnn_winograd_128x128", "convolutions, forward"),
        ("aten::grid_sampler_2d_backward", "sampling, backward"),
        ("aten::grid_sampler_2d", "sampling, forward"),
        ("sadnet::sample_backward", "sampling, backward"),
        ("sadnet::sample", "sampling, forward"),
        ("aten::upsample_bilinear2d", "the rest"),
        ("aten::_fused_adam_", "optimizer, average, clipping"),
        ("aten::linalg_vector_norm", "optimizer, average, clipping"),
        ("aten::normal_", "the rest"),
        ("aten::copy_", "copies and casts"),
        ("aten::cat", "copies and casts"),
        ("aten::scatter_", "the rest"),
        ("aten::bmm", "matrix products"),
        ("aten::leaky_relu", "the rest"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind
