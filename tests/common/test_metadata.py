"""What a file says of a picture is there again in the next one, where other programs look for it."""

import io
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from common.images import Picture, encode_picture, read_picture, write_picture
from common.metadata import Metadata, png_chunk, without_orientation

RGB = np.dstack(np.meshgrid(np.arange(0, 200, 5), np.arange(0, 240, 10), [60])).reshape(24, 40, 3).astype(np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LARGE_PROFILE = PROFILE + np.random.default_rng(1).bytes(150_000)
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/">Grüße</x:xmpmeta>'.encode()
KINDS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF"}
MAKE, ORIENTATION, COPYRIGHT, EXIF_IFD, GPS_IFD = 0x010F, 0x0112, 0x8298, 0x8769, 0x8825
EXPOSURE_TIME, ISO, MAKER_NOTE, LATITUDE = 0x829A, 0x8827, 0x927C, 2
NOTE = bytes(range(256)) * 3


def exif(turned: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[MAKE], tags[COPYRIGHT] = "Maker", "Someone"
    if turned != 1:
        tags[ORIENTATION] = turned
    tags.get_ifd(EXIF_IFD).update({EXPOSURE_TIME: 0.004, ISO: 3200, MAKER_NOTE: NOTE})
    tags.get_ifd(GPS_IFD).update({1: "N", LATITUDE: (52.0, 30.0, 0.5)})
    return tags


def saved(suffix: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    if suffix == ".png" and "xmp" in options:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode(), zip=True)
    if suffix == ".tif" and "xmp" in options:
        options["exif"][700] = options.pop("xmp")
    (image or Image.fromarray(RGB)).save(file, KINDS[suffix], **options)
    return file.getvalue()


def read(folder: Path, data: bytes) -> Picture:
    (folder / "x").write_bytes(data)
    return read_picture(folder / "x")


def told(image: Image.Image) -> dict[int, Any]:
    """What Pillow reads of EXIF, its directories too."""
    tags = image.getexif()
    ours = {key: tags[key] for key in (MAKE, COPYRIGHT, ORIENTATION) if key in tags}
    return ours | dict(tags.get_ifd(EXIF_IFD)) | {-key: value for key, value in tags.get_ifd(GPS_IFD).items()}


EXPECTED = {
    **{MAKE: "Maker", COPYRIGHT: "Someone", EXPOSURE_TIME: 0.004, ISO: 3200, MAKER_NOTE: NOTE},
    **{-1: "N", -LATITUDE: (52.0, 30.0, 0.5)},
}


@pytest.mark.parametrize("into", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_exif_xmp_and_icc_go_from_every_format_to_every_other(tmp_path: Path, source: str, into: str) -> None:
    first = ".jpg" if source == ".tif" else source  # Pillow writes no EXIF directory into a TIFF
    picture = read(tmp_path, saved(first, exif=exif(), xmp=XMP, icc_profile=LARGE_PROFILE))
    picture = read(tmp_path, encode_picture(picture, ".tif")[0]) if source == ".tif" else picture
    assert set(picture.metadata) == {"EXIF", "XMP", "ICC"}
    path = tmp_path / f"out{into}"
    assert write_picture(path, picture, overwrite=False) == ()
    parts = [path.read_bytes().count(b"ICC_PROFILE\0" + bytes((number, 3))) for number in range(5)]
    assert parts == ([0, 1, 1, 1, 0] if into == ".jpg" else [0] * 5)  # which Pillow does not look at
    with Image.open(path) as image:
        assert told(image) == EXPECTED
        xmp = image.info["XML:com.adobe.xmp"].encode() if into == ".png" else image.info["xmp"]
        assert xmp == XMP
        assert image.info["icc_profile"] == LARGE_PROFILE
        if into in (".png", ".tif"):
            np.testing.assert_array_equal(np.asarray(image), picture.pixels)
    again = read_picture(path)
    assert again.metadata["XMP"] == XMP
    assert again.metadata["ICC"] == LARGE_PROFILE


@pytest.mark.parametrize("into", [*KINDS, ".bmp"])
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("turned", range(1, 9))
def test_every_picture_is_shown_as_its_original(tmp_path: Path, source: str, into: str, turned: int) -> None:
    """The orientation is applied once: by who shows the picture, or to the pixels."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255  # no turn and no mirror image of it looks the same
    original = saved(source, Image.fromarray(pixels), exif=exif(turned))
    data, lost = encode_picture(read(tmp_path, original), into)
    shown, expected = (
        np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file)))).astype(int) for file in (data, original)
    )
    assert lost == (("EXIF",) if into == ".bmp" else ())
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() < 60  # JPEG and WebP blur


def test_an_xmp_packet_does_not_turn_a_tiff_again(tmp_path: Path) -> None:
    for packet in (b'<rdf:Description tiff:Orientation="6"/>', b"<tiff:Orientation>6</tiff:Orientation>"):
        upright = without_orientation(packet)
        assert upright == packet.replace(b"6", b"1")
        assert read(tmp_path, saved(".tif", exif=exif(6), xmp=packet)).metadata["XMP"] == upright
        assert read(tmp_path, saved(".tif", exif=exif(1), xmp=packet)).metadata["XMP"] == packet
        assert read(tmp_path, saved(".jpg", exif=exif(6), xmp=packet)).metadata["XMP"] == packet


def test_formats_that_lose_metadata_say_so() -> None:
    metadata: Metadata = {"EXIF": exif(1).tobytes()[6:], "XMP": XMP, "ICC": PROFILE, "CICP": b"\1\15\0\1"}
    assert encode_picture(Picture(RGB, metadata=metadata), ".bmp")[1] == ("EXIF", "XMP", "ICC", "CICP")
    assert encode_picture(Picture(RGB, metadata=metadata), ".png")[1] == ()
    for suffix in (".jpg", ".webp", ".tif"):
        assert encode_picture(Picture(RGB, metadata=metadata), suffix)[1] == ("CICP",)


def again(data: bytes, folder: Path, suffix: str) -> tuple[Image.Image, tuple[str, ...]]:
    """What is read from `data`, written anew, as Pillow reads it, and what is lost."""
    encoded, lost = encode_picture(read(folder, data), suffix)
    image = Image.open(io.BytesIO(encoded))
    image.load()
    return image, lost


def test_captions_comments_and_resolution_of_a_jpeg(tmp_path: Path) -> None:
    caption = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + (11).to_bytes(4, "big") + b"\x1c\x02\x78\0\x06Harbor\0"
    data = saved(".jpg", dpi=(300, 150), comment=b"by hand")
    data = data[:20] + b"\xff\xed" + (len(caption) + 2).to_bytes(2, "big") + caption + data[20:]
    assert Image.open(io.BytesIO(data)).info["photoshop"]
    image, lost = again(data, tmp_path, ".jpg")
    assert (image.info["dpi"], image.info["comment"], lost) == ((300, 150), b"by hand", ())
    assert image.info["photoshop"] == Image.open(io.BytesIO(data)).info["photoshop"]
    image, lost = again(data, tmp_path, ".png")
    assert (np.rint(image.info["dpi"]).tolist(), sorted(lost)) == ([300, 150], ["IPTC", "comment"])
    metric = data[:13] + b"\2" + data[14:]  # 300 and 150 a centimetre
    assert again(metric, tmp_path, ".jpg")[0].info["dpi"] == (762, 381)
    assert sorted(again(data, tmp_path, ".webp")[1]) == ["IPTC", "comment", "resolution"]
    image, lost = again(data, tmp_path, ".tif")
    assert (np.rint(image.info["dpi"]).tolist(), sorted(lost)) == ([300, 150], ["IPTC", "comment"])


@pytest.mark.parametrize(("metre", "inch"), [(2**32 - 1, 65535), (0, 1)])
def test_a_resolution_beyond_what_a_jpeg_can_say(metre: int, inch: int) -> None:
    picture = Picture(RGB, metadata={"resolution": struct.pack(">II", metre, metre)})
    assert struct.unpack_from(">BHH", encode_picture(picture, ".jpg")[0], 13) == (1, inch, inch)


def test_half_of_a_jpegs_profile_is_none(tmp_path: Path) -> None:
    data = saved(".jpg", icc_profile=LARGE_PROFILE)
    assert read(tmp_path, data).metadata["ICC"] == LARGE_PROFILE
    last = data.rindex(b"ICC_PROFILE\0") - 4
    end = last + 2 + int.from_bytes(data[last + 2 : last + 4], "big")
    assert "ICC" not in read(tmp_path, data[:last] + data[end:]).metadata


def test_what_has_no_room_in_a_jpegs_first_xmp_is_kept_or_named(tmp_path: Path) -> None:
    further = [b"http://ns.adobe.com/xmp/extension/\0" + bytes([i]) * 1000 for i in (1, 2)]
    segments = b"".join(b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part for part in further)
    data = saved(".jpg", xmp=XMP)
    picture = read(tmp_path, data[:20] + segments + data[20:])
    assert picture.metadata["XMP"] == XMP
    again, lost = encode_picture(picture, ".jpg")
    assert (read(tmp_path, again).metadata["extended XMP"], lost) == (segments, ())
    for suffix in (".png", ".webp", ".tif"):
        assert encode_picture(picture, suffix)[1] == ("extended XMP",)


def test_a_resolution_that_exif_tells_is_not_told_again(tmp_path: Path) -> None:
    tags = exif()
    tags[282], tags[283] = 90.0, 90.0  # an inch, where no unit is stated
    assert again(saved(".jpg", dpi=(300, 300), exif=tags), tmp_path, ".tif")[0].info["dpi"] == (90, 90)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 4, 7])
def test_captions_of_a_tiff(tmp_path: Path, kind: int, order: Any) -> None:
    """Bytes, whatever the writer takes them for."""
    caption = b"\x1c\x02\x78\0\x06Harbor\0"
    value = np.frombuffer(caption, f"{order}u4").tolist() if kind == 4 else caption
    file = io.BytesIO()
    options: dict[str, Any] = {"extratags": [(33723, kind, len(value), value, True)]}
    tifffile.imwrite(file, RGB, photometric="rgb", byteorder=order, metadata=None, software=False, **options)
    picture = read(tmp_path, file.getvalue())
    assert picture.metadata["IPTC"] == caption
    data, lost = encode_picture(picture, ".tif")
    assert lost == ()
    with tifffile.TiffFile(io.BytesIO(data)) as written:
        assert written.pages.first.tags[33723].value == caption
    for suffix in (".jpg", ".png", ".webp", ".bmp"):
        assert "IPTC" in encode_picture(picture, suffix)[1]
    damaged = read(tmp_path, file.getvalue().replace(caption, b"\xff\xed" + caption[2:]))
    assert "IPTC" not in damaged.metadata  # which a JPEG would take for a segment of its own


def chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def test_text_resolution_and_gamma_of_a_png(tmp_path: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Title", "Harbor")
    about.add_itxt("Author", "Jörg")
    data = saved(".png", dpi=(300, 300), pnginfo=about)
    linear = data[:33] + chunk(b"gAMA", (100_000).to_bytes(4, "big")) + data[33:]
    image, lost = again(linear, tmp_path, ".png")
    assert isinstance(image, PngImagePlugin.PngImageFile)
    assert image.text == {"Title": "Harbor", "Author": "Jörg"}
    assert (np.rint(image.info["dpi"]).tolist(), image.info["gamma"], lost) == ([300, 300], 1.0, ())
    image, lost = again(linear, tmp_path, ".jpg")
    assert (image.info["dpi"], sorted(lost)) == ((300, 300), ["gamma", "text"])
    usual = data[:33] + chunk(b"gAMA", (45_455).to_bytes(4, "big")) + data[33:]
    assert again(usual, tmp_path, ".jpg")[1] == ("text",)


def test_srgb_is_said_again_in_a_png_and_understood_elsewhere(tmp_path: Path) -> None:
    plain, gamma = saved(".png"), chunk(b"gAMA", (45_455).to_bytes(4, "big"))
    usual, wide = (
        chunk(b"cHRM", b"".join(number.to_bytes(4, "big") for number in numbers))
        for numbers in (
            (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
            (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000),  # Display P3
        )
    )
    for chunks, lost in (
        (chunk(b"sRGB", b"\1"), ()),
        (chunk(b"sRGB", b"\0") + gamma + usual, ()),
        (gamma + usual, ()),
        (gamma + wide, ("gamma",)),
        (wide, ("gamma",)),
    ):
        picture = read(tmp_path, plain[:33] + chunks + plain[33:])
        for suffix in (".jpg", ".webp", ".tif", ".bmp"):
            assert encode_picture(picture, suffix)[1] == lost
        data, none = encode_picture(picture, ".png")
        assert (data[33 : 33 + len(chunks)], none) == (chunks, ())


def test_many_small_texts_take_no_time(tmp_path: Path) -> None:
    """A million copies of all that was before would be an hour."""
    jpeg, png = saved(".jpg"), saved(".png")
    comments, texts = b"\xff\xfe\0\2" * 250_000, chunk(b"tEXt", b"a\0") * 200_000
    start = time.process_time()
    assert len(read(tmp_path, jpeg[:20] + comments + jpeg[20:]).metadata["comment"]) == 1_000_000
    assert len(read(tmp_path, png[:33] + texts + png[33:]).metadata["text"]) == 2_800_000
    assert time.process_time() - start < 6


def test_a_damaged_text_costs_a_png_no_other_metadata(tmp_path: Path) -> None:
    chunks = [(b"iTXt", b"XML:com.adobe.xmp\0\0\0" + XMP), (b"iTXt", b"XML:com.adobe.xmp\0")]
    for chunk in (png_chunk(*chunk) for chunk in chunks):
        data = saved(".png", icc_profile=PROFILE)
        at = data.index(b"IDAT") - 4
        assert read(tmp_path, data[:at] + chunk + data[at:]).metadata["ICC"] == PROFILE


def test_a_jpeg_of_several_pictures_says_that_one_is_kept(tmp_path: Path) -> None:
    """As phones write them, with a gain map behind the photo."""
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "MPO", save_all=True, append_images=[Image.fromarray(RGB[:8, :8])], exif=exif(1))
    picture = read(tmp_path, file.getvalue())
    assert picture.pixels.shape == RGB.shape
    assert encode_picture(picture, ".jpg")[1] == ("further pictures",)


def test_a_damaged_jfif_segment_costs_no_other_metadata(tmp_path: Path) -> None:
    data = saved(".jpg", comment=b"by hand")
    short = b"\xff\xe0\0\7JFIF\0"
    assert set(read(tmp_path, data[:2] + short + data[20:]).metadata) == {"comment"}


def test_a_lossless_webp_holds_metadata_and_alpha(tmp_path: Path) -> None:
    alpha = np.tile(np.arange(10, 250, 6, dtype=np.uint8), (24, 1))  # of clear pixels it drops the colour
    for picture in (Picture(RGB, None), Picture(RGB, alpha)):
        data = encode_picture(replace(picture, metadata={"XMP": XMP}), ".webp", 100)[0]
        after = read(tmp_path, data)
        assert after.metadata == {"XMP": XMP}
        np.testing.assert_array_equal(after.pixels, RGB)
        assert (after.alpha is None) == (picture.alpha is None)
        if after.alpha is not None:
            np.testing.assert_array_equal(after.alpha, alpha)
            assert Image.open(io.BytesIO(data)).mode == "RGBA"


def test_what_is_too_large_for_jpeg_is_dropped_alone_and_named(tmp_path: Path) -> None:
    turned, upright = (XMP + b'<rdf:Description tiff:Orientation="%d"/>' % n for n in (3, 1))
    metadata: Metadata = {"EXIF": exif(3).tobytes()[6:] + bytes(70_000), "XMP": turned}
    data, lost = encode_picture(Picture(RGB, metadata=metadata), ".jpg", quality=100)
    assert lost == ("EXIF",)
    again = read(tmp_path, data)
    assert again.metadata == {"XMP": upright}
    assert np.abs(again.pixels.astype(int) - RGB[::-1, ::-1]).mean() < 30  # turned, now that nothing says so


def test_damaged_exif_stops_no_tiff(tmp_path: Path) -> None:
    data, lost = encode_picture(Picture(RGB, metadata={"EXIF": b"MM\0*\xff\xff\xff\xff", "XMP": XMP}), ".tif")
    assert lost == ("EXIF",)
    assert read(tmp_path, data).metadata == {"XMP": XMP}


def test_profiles_of_other_colours_are_not_attached(tmp_path: Path) -> None:
    cmyk, gray = (PROFILE[:16] + space + PROFILE[20:] for space in (b"CMYK", b"GRAY"))
    picture = read(tmp_path, saved(".jpg", Image.fromarray(RGB).convert("CMYK"), icc_profile=cmyk))
    assert (picture.pixels.shape, picture.metadata) == (RGB.shape, {"CMYK profile": cmyk})
    assert [encode_picture(picture, suffix)[1] for suffix in (".jpg", ".png", ".tif")] == [("CMYK profile",)] * 3
    picture = read(tmp_path, saved(".jpg", Image.fromarray(RGB).convert("L"), icc_profile=gray))
    assert encode_picture(picture, ".png")[1] == ()
    assert encode_picture(picture, ".webp")[1] == ("ICC",)  # which has no gray
    assert encode_picture(Picture(RGB[..., 0], metadata={"ICC": PROFILE}), ".png")[1] == ("ICC",)


def test_what_a_png_compresses_is_bounded(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", " " * (2**26 + 1), zip=True)
    data = saved(".png", pnginfo=info)
    assert len(data) < 10**6
    assert read(tmp_path, data).metadata == {}


def test_no_photo_of_a_tiff_writer_is_taken_for_one_with_exif(tmp_path: Path) -> None:
    data, _ = encode_picture(Picture(RGB), ".tif")
    assert read(tmp_path, data).metadata == {}


def test_a_tiff_written_here_is_read_elsewhere() -> None:
    metadata: Metadata = {"EXIF": exif(6).tobytes()[6:], "XMP": XMP, "ICC": PROFILE}
    data, _ = encode_picture(Picture(RGB.astype(np.uint16) * 257, metadata=metadata), ".tif")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        assert (tags["Make"].value, tags["Orientation"].value, tags["XMP"].value) == ("Maker", 6, XMP)
        assert tags["ExifTag"].value["ExposureTime"] == 0.004
        assert tags["InterColorProfile"].value == PROFILE
        assert len(file.pages) == 1
