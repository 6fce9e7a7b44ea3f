"""The table of data sets: where each comes from and how it lies on disk once its archive is unpacked."""

import re
from dataclasses import dataclass

from common.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Layout:
    """A data set on disk.

    `clean` and `noisy` are patterns of whole paths, in any case, that begin with the given folder's own name. A noisy
    and a clean file belong together where the patterns' groups hold the same text. The group `scene` names what must
    not be divided between training and validation; where there are groups `root` and `name`, the scene is of that root,
    and an empty one is named by `name`.
    """

    name: str
    page: str
    """Where to download it."""
    holds: str
    """Its folders and files, for people."""
    clean: str | None
    noisy: str | None = None
    count: int = 0
    """Pairs or images of the whole set; 0: any number."""
    test: bool = False
    """Kept for testing: training refuses it."""
    averaged: bool = False
    """Several clean files with one key are of one scene, and stand for their mean."""

    @property
    def kind(self) -> str:
        """What `count` counts."""
        if self.clean is None:
            return "noisy images"
        return "pairs" if self.noisy else "images"


_SIDD = "https://www.eecs.yorku.ca/~kamel/sidd"
_FFDNET = "https://github.com/cszn/FFDNet/tree/master/testsets"
_ANY_IMAGE = rf".*(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})"

LAYOUTS = (
    Layout(
        "sidd",
        f"{_SIDD}/dataset.php (SIDD-Medium, sRGB)",
        "Data/0001_001_S6_00100_00060_3200_L/0001_NOISY_SRGB_010.PNG, 0001_GT_SRGB_010.PNG, ...",
        r"(.*/\d{4}_)(?P<scene>\d{3})(_[^/]*/\d{4}_)GT(_SRGB_\d{3})\.png",
        r"(.*/\d{4}_)(?P<scene>\d{3})(_[^/]*/\d{4}_)NOISY(_SRGB_\d{3})\.png",
        count=320,
    ),
    Layout(
        "renoir",
        "https://ani.stat.fsu.edu/~abarbu/Renoir.html (aligned)",
        "Mi3_Aligned, S90_Aligned, T3i_Aligned/Batch_001/*Noisy.bmp, *Reference.bmp, *full.bmp (the last two averaged)",
        r"(?P<scene>.*/)[^/]*(?:Reference|full)\.bmp",
        r"(?P<scene>.*/)[^/]*Noisy\.bmp",
        averaged=True,
    ),
    Layout(
        "polyu",
        "https://github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset",
        "CroppedImages/Canon80D_8_8_800_GO_11_real.JPG, ..._mean.JPG",
        r"(?P<scene>.*?)(_+\d+)_mean\.jpg",
        r"(?P<scene>.*?)(_+\d+)_real\.jpg",
        count=100,
    ),
    Layout(
        "pairs",
        "your own photos",
        "noisy/SCENE/NAME.png, clean/SCENE/NAME.png (any format); without SCENE each pair is a scene",
        r"(?P<root>.*/)clean/(?P<scene>(?:[^/]+/)*)(?P<name>[^/]*)\.\w+",
        r"(?P<root>.*/)noisy/(?P<scene>(?:[^/]+/)*)(?P<name>[^/]*)\.\w+",
    ),
    Layout(
        "cc",
        "https://github.com/csjunxu/MCWNNM-ICCV2017 (Real_ccnoise_denoised_part)",
        "d800_iso1600_1_real.png, d800_iso1600_1_mean.png",
        r"(?P<scene>.*/(?:5dmark3|d600|d800)_iso\d+_\d)_mean\.png",
        r"(?P<scene>.*/(?:5dmark3|d600|d800)_iso\d+_\d)_real\.png",
        count=15,
        test=True,
    ),
    Layout(
        "nam",
        "http://snam.ml/research/ccnoise",
        "Nikon_D800/ISO_1600/*.mat, each with img_noisy and img_mean",
        r"(?P<scene>.*/ISO_\d+/.*)\.mat",
        r"(?P<scene>.*/ISO_\d+/.*)\.mat",
        count=17,
        test=True,
    ),
    Layout(
        "sidd_validation",
        f"{_SIDD}/benchmark.php (validation blocks, sRGB)",
        "ValidationNoisyBlocksSrgb.mat, ValidationGtBlocksSrgb.mat: 1280 blocks each",
        r"(?P<scene>.*/)ValidationGtBlocksSrgb\.mat",
        r"(?P<scene>.*/)ValidationNoisyBlocksSrgb\.mat",
        test=True,
    ),
    Layout(
        "dnd",
        "https://noise.visinf.tu-darmstadt.de/downloads/",
        "info.mat, images_srgb/0001.mat ... 0050.mat (their clean images stay on the server: train/dnd.py)",
        None,
        r"(?P<scene>.*/images_srgb/\d{4})\.mat",
        count=50,
        test=True,
    ),
    Layout(
        "div2k",
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
        "DIV2K_train_HR/0001.png ... 0800.png",
        r"(?:.*/)?DIV2K_train_HR/\d{4}\.png",
        count=800,
    ),
    Layout(
        "bsds500_val",
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html (BSDS500)",
        "BSDS500/data/images/val/101085.jpg ... (BSDS300/images/test in the older set): BSD68 and CBSD68 are of these",
        r"(?:.*/)?(?:val|BSDS300/images/test)/\d{4,6}\.jpg",
        count=100,
        test=True,
    ),
    Layout("bsd68", f"{_FFDNET}/BSD68", "BSD68/test001.png ...", r"(?:.*/)?BSD68/test\d{3}\.png", count=68, test=True),
    Layout(
        "cbsd68",
        f"{_FFDNET}/CBSD68",
        "CBSD68/101085.png ...",
        r"(?:.*/)?CBSD68/(?:original_png/)?\d+\.png",
        count=68,
        test=True,
    ),
    Layout(
        "kodak24",
        f"{_FFDNET}/Kodak24 (500x500 crops); whole: https://r0k.us/graphics/kodak/",
        "Kodak24/kodim01.png ... kodim24.png",
        r"(?:.*/)?kodim\d\d\.png",
        count=24,
        test=True,
    ),
    Layout(
        "mcmaster",
        "https://www4.comp.polyu.edu.hk/~cslzhang/CDM_Dataset.htm",
        "McM/1.tif ... 18.tif",
        r"(?:.*/)?McM[^/]*/\d{1,2}\.(?:tif|png)",
        count=18,
        test=True,
    ),
    Layout("set12", f"{_FFDNET}/Set12", "Set12/01.png ... 12.png", r"(?:.*/)?Set12/\d\d\.png", count=12, test=True),
    Layout("photos", "your own photos", "clean images in any folders", _ANY_IMAGE),
)
"""In the order in which they are tried: what nothing else claims is a photo."""
PHOTOS = LAYOUTS[-1]
