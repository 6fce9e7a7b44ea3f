"""What of the memory that is free the network may have, of the host's or of a GPU's."""

from common.host_memory import free_bytes

BYTES_A_PIXEL = 8000
"""SADNet's in fp32, at most: on a CPU ONNX Runtime was measured to need 6.0 KB, at 256x256 and 512x512, and 7.7 KB of
the largest where sizes vary, PyTorch 3.8 KB at 512x512 (tests/runtime/test_seams.py). A GPU needs less: at 1920x1080
1.3 KB in fp16 and 4.9 KB by PyTorch in fp32 (docs/results/benchmark_gpu.json)."""
SHARE = 2
"""The network may have one part in so many of what is free; the rest is for the pictures, and for other programs."""
HOST_PIXELS = 512 * 512
"""No more at once in the host's memory, whatever is free. So the network takes 2.1 GB at most, and a run from file to
file of a picture of 100 megapixels stays within 4 GB (tests/runtime/test_seams.py); and larger pieces were measured to
be no faster on a CPU."""


def pixels_in_host() -> int | None:
    """Pixels that SADNet may be given at once on a CPU; None where the system does not tell what is free."""
    free = free_bytes()
    return None if free is None else min(HOST_PIXELS, pixels_in(free))


def pixels_in(free: int) -> int:
    """Pixels that SADNet may be given at once where so many bytes are free."""
    return free // SHARE // BYTES_A_PIXEL


def device_bytes() -> tuple[int, int] | None:
    """Free and total bytes of the current GPU's memory, by all processes; None where there is no GPU, or no
    cuda-bindings to ask it."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    error, free, total = runtime.cudaMemGetInfo()
    return None if int(error) else (int(free), int(total))
