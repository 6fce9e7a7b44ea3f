"""docs/results.md, made of figures alone: what was measured, what was counted, and what was published."""

from collections.abc import Iterable, Sequence
from typing import Any

from train.cells import PAIRS, Cell

Record = dict[str, Any]
"""A JSON object: results/tables.json, results/published.json or results/benchmark_cpu.json."""

TITLES = {
    "cbsd68": "CBSD68",
    "kodak24": "Kodak24",
    "bsd68": "BSD68",
    "mcmaster": "McMaster",
    "set12": "Set12",
    "cc": "CC",
    "nam": "Nam",
    "sidd_validation": "SIDD validation",
    "dnd": "DND",
}
_WHO = {
    "paper": "the paper [1]",
    "replication_quotes": "the paper, as [2] quotes it",
    "replication": "the replication [3]",
    "measured": "measured on the same files [4]",
    "outputs": "measured on its published outputs [5]",
    "literature": "the literature [6]",
    "ours": "**this project**",
}
"""Whose figures a row holds, in the order of the rows; the numbers are those of the sources, below."""
PARTS = ("rsab", "offset_transfer", "context")
"""What Table 1 takes out of the network, by its name in `SADNetConfig`."""
_KINDS = {1: "gray", 3: "colour"}


def page(measured: Record, published: Record, times: Record | None, ablation: Record | None) -> str:
    """The text of results.md. times, ablation: the files of the CPU benchmark and of Table 1, where there are any.

    Of a set's cells those are shown that were measured on the files that measured["sets"] names.
    """
    editions = {name: entry.get("sha256") for name, entry in measured["sets"].items()}
    measured = measured | {"cells": [c for c in measured["cells"] if editions.get(c["set"]) == c["set_sha256"]]}
    parts = [
        *_introduction(measured),
        *_ablation(measured, published, ablation),
        *_white("Table 2: gray images, white noise", ("bsd68", "kodak24"), 1, measured, published),
        *_white("Table 3: colour images, white noise", ("cbsd68", "kodak24"), 3, measured, published),
        "A model loses where the noise is not that of its training: CBM3D, DnCNN and FFDNet are made for noise that is "
        "not clipped, FFDNet_Clip and the bundled models for noise that is.",
        _remark_on_crops(measured, published),
        *_real("Table 4: DND", "dnd", measured, published),
        *_real("Table 5: SIDD validation blocks", "sidd_validation", measured, published),
        *_real("Table 6: Nam", "nam", measured, published),
        "The paper's figure is of 25 patches, JPEG-compressed. The 15 crops that follow are of the same photographs, "
        "but other ones: their figures and Table 6's do not compare.",
        *_real("Beside Table 6: CC, 15 crops", "cc", measured, published),
        *_cost(measured, published, times),
        *_others(measured, published),
        "## Sources",
        "\n".join(f"{n}. {text}" for n, text in enumerate(published["sources"].values(), 1)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _introduction(measured: Record) -> list[str]:
    runs = dict.fromkeys((cell["date"], cell["on"]) for cell in measured["cells"])
    models = (
        [f"`{m['name']}`", m["noise"], m["variant"], f"{m['steps']:,}", f"`{m['sha256']}`", f"`{m['weights_sha256']}`"]
        for m in measured["models"]
    )
    return [
        "# The paper's tables",
        "Written by `make tables DATA=folder` (`train/tables.py`); the figures are in "
        "[results/tables.json](results/tables.json), Table 1's in [results/ablation.json](results/ablation.json), and "
        "those of others in [results/published.json](results/published.json). PSNR in dB, or PSNR / SSIM.",
        _table(("model", "for", "variant", "last run's steps", "SHA-256 of the ONNX file", "of the weights"), models),
        "\n".join(f"- Measured {date}: {on}." for date, on in runs),
        "Protocols, which `train/evaluate.py` states in full: **clip8**, white noise clipped and rounded to 8 bits, as "
        "in a file that a person has, and as in the training of our models; **float**, neither, as most papers do; "
        "real noise is as it is. Which of the two the paper's own figures follow it does not say; its code clips.",
        "A hyphen: not in the source, or a level that is not measured by that protocol"
        f"{', or not measured yet' if measured['missing'] else ''}.",
        f"**{measured['missing']} of our figures are not measured yet**: the same command goes on with them."
        if measured["missing"]
        else "",
    ]


def _ablation(measured: Record, published: Record, ours: Record | None) -> list[str]:
    ablation = published["ablation"]
    ours = ours if ours and _of_this(ours, ablation, measured) else None

    def row(of: Record) -> list[str]:
        costs = (_cost_of(measured, variant, of) for variant in ("paper", "official"))
        counted = [text for c in costs for text in (f"{c['parameters']:,}", _giga(c["macs"]))]
        score = _trained(ours, of)
        figure = _score(score["psnr"], score["ssim"]) if score else "not measured"
        return [*("yes" if of[part] else "no" for part in PARTS), f"{of['psnr']:.2f}", figure, *counted]

    head = ("RSAB", "offset transfer", "context block", "the paper [1]", "this project")
    counts = [text for variant in ("`paper`", "`official`") for text in (f"{variant} parameters", "multiply-adds")]
    return [
        f"## Table 1: ablation ({TITLES[ablation['set']]}, colour, sigma {ablation['sigma']})",
        _table((*head, *counts), map(row, ablation["rows"])),
        _budget(ours) if ours else "Not measured on these files: `python train/ablation.py` trains the six networks.",
        f"Parameters and multiply-adds ({measured['size']}) are counted on the network (`train/cost.py`).",
    ]


def _of_this(ours: Record, ablation: Record, measured: Record) -> bool:
    """Whether our figures are of the table's set and noise, and of the files that the page is of."""
    files = measured["sets"].get(ours["set"], {}).get("sha256")
    return (ours["set"], ours["sigma"], ours["set_sha256"]) == (ablation["set"], ablation["sigma"], files)


def _trained(ours: Record | None, parts: Record) -> Record | None:
    rows: list[Record] = ours["rows"] if ours else []
    return next((row for row in rows if all(row[part] == parts[part] for part in PARTS)), None)


def _budget(ours: Record) -> str:
    """What our networks of Table 1 have had, and the paper's."""
    crop, devices = ours["crop"], ", ".join(dict.fromkeys(row["on"] for row in ours["rows"]))
    minutes = [row["seconds"] / 60 for row in ours["rows"]]
    return (
        f"Ours are `{ours['variant']}`, each trained from nothing for {ours['steps']:,} steps of "
        f"{ours['batch']}x{crop}x{crop} at this one level, seed {ours['seed']}, in {min(minutes):.0f} to "
        f"{max(minutes):.0f} minutes ({devices}), and scored by {ours['protocol']} on {ours['date']}: "
        "`python train/ablation.py` ([results/ablation.json](results/ablation.json)). They would compare with "
        "the paper's at its budget, some 960,000 batches of 16x128x128 in its code; and each is of one run, so that "
        "small differences between them say nothing ([training.md](training.md))."
    )


def _cost_of(measured: Record, variant: str, parts: Record) -> Record:
    wanted = {"variant": variant, **{part: parts[part] for part in PARTS}}
    found: Record = next(c for c in measured["costs"] if all(c[key] == value for key, value in wanted.items()))
    return found


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.1f} G"


def _white(title: str, names: Sequence[str], channels: int, measured: Record, published: Record) -> list[str]:
    parts = [f"## {title}"]
    for name in names:
        parts += [f"### {TITLES[name]}, {_KINDS[channels]}", _white_table(name, channels, measured, published)]
    return parts


def _white_table(name: str, channels: int, measured: Record, published: Record) -> str:
    theirs = [row for row in _of_these(published, measured) if (row["set"], row["channels"]) == (name, channels)]
    ours = _ours_white(name, channels, measured)
    levels = sorted({int(level) for row in theirs + ours for level in row["psnr"]})
    order = list(_WHO)
    rows = []
    for protocol in (None, "float", "clip8"):
        rows += sorted((r for r in theirs if r.get("protocol") == protocol), key=lambda r: order.index(r["source"]))
        rows += [row for row in ours if row["protocol"] == protocol]
    lines = [[*_names(row), row.get("protocol", "the paper's"), *_levels(row, levels)] for row in rows]
    reference = next((row for row in theirs if (row["method"], row["source"]) == ("SADNet", "paper")), None)
    for row in ours if reference else []:
        lines += [[f"{row['method']} less SADNet [1]", "", row["protocol"], *_gaps(row, reference, levels)]]
    if not ours:
        lines.append(["this project", _why_not(name, channels, measured), *["-"] * (1 + len(levels))])
    return _table(("method", "figures of", "protocol", *(f"sigma {level}" for level in levels)), lines)


def _of_these(published: Record, measured: Record) -> list[Record]:
    """The rows of white noise, but for those that were measured on other files than ours."""
    here = {name: facts.get("sha256") for name, facts in measured["sets"].items()}
    others = {name for name, files in published["measured_on"].items() if here.get(name, files) not in (files, None)}
    return [row for row in published["white"] if row["source"] != "measured" or row["set"] not in others]


def _gaps(row: Record, reference: Record | None, levels: Sequence[int]) -> list[str]:
    """By how many dB the row stands above the reference, where both have a figure."""
    ours, theirs = row["psnr"], (reference or {"psnr": {}})["psnr"]
    both = ((ours.get(str(level)), theirs.get(str(level))) for level in levels)
    return ["-" if None in gap else f"{gap[0] - gap[1]:+.2f}" for gap in both]


def _ours_white(name: str, channels: int, measured: Record) -> list[Record]:
    """Rows in the shape of the published ones, one for each model and protocol."""
    rows: dict[tuple[str, str], Record] = {}
    if channels == _channels(name, measured):
        for cell in (c for c in measured["cells"] if c["set"] == name and c["protocol"] != PAIRS):
            made = {"method": f"`{cell['model']}`", "source": "ours", "psnr": {}, "ssim": {}}
            row = rows.setdefault((cell["model"], cell["protocol"]), made | {"protocol": cell["protocol"]})
            for score in ("psnr", "ssim"):
                row[score][f"{cell['sigma']:g}"] = cell[score]
    return list(rows.values())


def _channels(name: str, measured: Record) -> int:
    """Of the set's images as they lie on disk; 0 where it is not there."""
    channels: int = measured["sets"][name].get("channels", 0)
    return channels


def _names(row: Record) -> list[str]:
    extra = [f"first {row['images']} images"] if "images" in row else []
    extra += ["told sigma"] if row.get("told_sigma") else []
    return [f"{row['method']} ({', '.join(extra)})" if extra else row["method"], _WHO[row["source"]]]


def _levels(row: Record, levels: Sequence[int]) -> list[str]:
    return [_score(row["psnr"].get(str(x)), row.get("ssim", {}).get(str(x))) for x in levels]


def _score(psnr: float | None, ssim: float | None, digits: int = 3) -> str:
    if psnr is None:
        return "-"
    return f"{psnr:.2f}" if ssim is None else f"{psnr:.2f} / {ssim:.{digits}f}"


def _why_not(name: str, channels: int, measured: Record) -> str:
    if channels not in {model["channels"] for model in measured["models"]}:
        return f"not measured: no {_KINDS[channels]} model is bundled yet"
    if "why" in measured["sets"][name]:
        return str(measured["sets"][name]["why"])
    if channels != _channels(name, measured):
        return f"not measured: the folder has no {_KINDS[channels]} images of it"
    if measured["missing"]:
        return "not measured yet: the same command goes on with it"
    return "not measured: no bundled model is for white noise"


def _remark_on_crops(measured: Record, published: Record) -> str:
    """Why a Kodak24 of another size than the photographs' own lets the figures stand below the paper's."""
    sizes = measured["sets"]["kodak24"].get("sizes", [])
    ffdnet = [r for r in published["white"] if (r["method"], r["set"], r["channels"]) == ("FFDNet", "kodak24", 3)]
    here = next(r["psnr"]["50"] for r in ffdnet if r.get("protocol") == "float")
    there = next(r["psnr"]["50"] for r in ffdnet if r["source"] == "paper")
    if sizes != ["500x500"]:
        return ""
    return (
        f"Kodak24 are the 500x500 crops: FFDNet measures {here:.2f} on them at sigma 50 (float), where the paper's "
        f"table says {there:.2f}; the paper's other figures will stand as much higher than any can here."
    )


def _real(title: str, name: str, measured: Record, published: Record) -> list[str]:
    order = list(_WHO)
    theirs = sorted((r for r in published["real"] if r["set"] == name), key=lambda r: order.index(r["source"]))
    lines = [[*_names(row), _score(row["psnr"], row.get("ssim"), 4)] for row in theirs]
    cells: list[Cell] = [c for c in measured["cells"] if (c["set"], c["protocol"]) == (name, PAIRS)]
    if cells:
        noisy = _score(cells[0]["noisy_psnr"], cells[0]["noisy_ssim"], 4)
        lines.insert(0, [f"noisy ({cells[0]['images']} images)", _WHO["ours"], noisy])
    lines += [[f"`{cell['model']}`", _WHO["ours"], _score(cell["psnr"], cell["ssim"], 4)] for cell in cells]
    if not cells:
        lines.append(["this project", _why_not(name, 3, measured), "-"])
    level = "##" if title.startswith("Table") else "###"
    return [f"{level} {title}", _table(("method", "figures of", "PSNR, or PSNR / SSIM"), lines)]


def _cost(measured: Record, published: Record, times: Record | None) -> list[str]:
    cost = published["cost"]
    lines = [
        [row["method"], "the paper [1]", f"{row['thousand_parameters']:,} k", f"{row['giga_macs']} G", f"{row['ms']}"]
        for row in cost["rows"]
    ]
    whole = dict.fromkeys(PARTS, True)
    counts = {variant: _cost_of(measured, variant, whole) for variant in ("paper", "official")}
    for variant, c in counts.items():
        thousands = f"{c['parameters'] / 1e3:,.0f} k"
        lines.append([f"SADNet, `{variant}`", _WHO["ours"], thousands, _giga(c["macs"]), "not measured: no such GPU"])
    ours = counts["paper"]
    benchmark = (
        f"{row['engine']} ({row['runs_on']}) {row['median_ms']:.0f} ms"
        for row in (times or {}).get("rows", ())
        if row["size"] == measured["size"] and "median_ms" in row
    )
    on_cpu = "; ".join(benchmark)
    return [
        f"## Table 7: cost at {cost['size']}",
        _table(("method", "figures of", "parameters", "multiply-adds", f"ms, {cost['gpu']}"), lines),
        f"Ours are counted on the network (`train/cost.py`). Of the multiply-adds of `paper`, the weights of the "
        f"deformable convolutions take {_giga(ours['deformable_macs'])}; their sampling takes "
        f"{_giga(ours['sampling_macs'])} more, which are not in the table. Neither the paper's text nor its code has "
        "as many parameters as its table says.",
        f"On a CPU ({times['cpu']}, {times['cores']} cores, {times['date']}): {on_cpu}." if times and on_cpu else "",
    ]


def _others(measured: Record, published: Record) -> list[str]:
    parts = []
    for name in ("mcmaster", "set12"):
        held = measured["sets"][name]
        if "why" not in held:
            channels = held["channels"]
            parts += [f"### {TITLES[name]}, {_KINDS[channels]}", _white_table(name, channels, measured, published)]
    return ["## Beyond the paper's sets", *parts] if parts else []
