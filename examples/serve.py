"""A web service, on this machine alone: a picture in, a PNG out. One Denoiser serves all threads.

python examples/serve.py 8000
curl --fail --data-binary @noisy.jpg http://127.0.0.1:8000 > clean.png
"""

import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common.errors import SadnetError
from common.images import decode_picture, encode_picture
from runtime import Denoiser

MODEL = Path(__file__).resolve().parent.parent / "assets" / "real_color.onnx"
MOST_BYTES, MOST_PIXELS = 64 * 2**20, 100 * 10**6
"""Of a request: what somebody else sends is not to fill the memory."""


class Handler(BaseHTTPRequestHandler):
    """One request, in a thread of its own."""

    denoiser: Denoiser
    timeout = 30  # seconds for a request that does not come

    def do_POST(self) -> None:
        try:
            png = self.denoised(self.body())
        except (ValueError, SadnetError) as error:
            self.send_error(400, explain=str(error))
            return
        except TimeoutError:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(png)))
        self.end_headers()
        self.wfile.write(png)

    def body(self) -> bytes:
        length = int(self.headers["Content-Length"] or 0)
        if not 0 < length <= MOST_BYTES:
            raise ValueError(f"expected a picture of at most {MOST_BYTES} bytes, found {length}")
        return self.rfile.read(length)

    def denoised(self, data: bytes) -> bytes:
        picture = decode_picture(data, "the request", most_pixels=MOST_PIXELS)
        clean = self.denoiser.denoise(picture.pixels)  # needs no lock
        return encode_picture(replace(picture, pixels=clean), ".png")[0]


def main(port: int) -> None:
    with Denoiser(MODEL) as Handler.denoiser, ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        sys.exit(__doc__)
    main(int(sys.argv[1]))
