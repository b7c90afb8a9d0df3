"""The report as a file: JSON, or one HTML page with pictures that works offline, by keyboard and on a phone.

File and class names come from strangers: every text goes through `_safe` before it stands in the page, and
the page may load nothing (its Content-Security-Policy).
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..data.images import open_image
from ..data.records import Problem
from ..errors import UserError
from ..files import check_output_file, write_json, write_text
from .duplicates import MOST_BITS
from .examples import Example, ExampleBox, Section
from .facts import DataReport, SplitReport, grouped
from .sizes import QUANTILES, bin_names, spread
from .terminal import forecast_sentences

SHOWN_SIDE = 800  # pixels of a picture in the page
LISTED = 200  # problems of a kind
CLASSES_SHOWN = 1000
SUFFIXES = (".json", ".html")

_GALLERIES: dict[Section, tuple[str, str]] = {
    "suspects": ("Suspected boxes", "Dropped or clipped: the red, dashed ones, as their file states them."),
    "tiniest": ("The tiniest objects", "In the middle of each part, drawn pixel by pixel."),
    "crowded": ("The fullest picture", ""),
    "duplicates": ("The same picture again", "Side by side; their boxes should agree."),
    "samples": ("Examples", "Spread evenly over each split. Do the boxes fit, do the classes?"),
}


def check_output(path: str | Path) -> None:
    """Raise a UserError if `write_report` cannot write such a file."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {path}: the report is written as .json or .html, so give it that ending.")
    check_output_file(path)


def write_report(report: DataReport, path: str | Path) -> None:
    """Write JSON or the page, by the ending of `path`.

    Raises:
        UserError: another ending.
    """
    check_output(path)
    if Path(path).suffix.lower() == ".html":
        write_text(path, html_of(report))
    else:
        write_json(path, report.to_dict())


def html_of(report: DataReport) -> str:
    """The page. Opens the pictures of `report.examples`; those that do not open are left out."""
    sections = [
        ("remarks", "What follows", _remarks(report)),
        ("problems", f"Problems ({report.problem_count:,})", _problems(report)),
        *(
            (section, title, _gallery(report, section, hint))
            for section, (title, hint) in _GALLERIES.items()
            if section in ("suspects", "tiniest")
        ),
        ("splits", "Splits", _overview(report)),
        ("classes", "Classes", _classes(report)),
        ("sizes", "Object sizes", _sizes(report)),
        *(
            (section, title, _gallery(report, section, hint))
            for section, (title, hint) in _GALLERIES.items()
            if section not in ("suspects", "tiniest")
        ),
    ]
    shown = [(name, title, content) for name, title, content in sections if content]
    parts = {
        "title": _safe(report.root.resolve().name),
        "summary": _summary(report),
        "links": " ".join(f'<a href="#{name}">{_safe(title)}</a>' for name, title, _ in shown),
        "body": "\n".join(
            f'<section id="{name}">\n<h2>{_safe(title)}</h2>\n{content}\n</section>'
            for name, title, content in shown
        ),
    }
    template = (files(__package__) / "page.html").read_text(encoding="utf-8")
    page, *pieces = template.split("{{")
    for piece in pieces:  # in one pass: what a part holds is never taken for a placeholder
        name, after = piece.split("}}", 1)
        page += parts[name] + after
    return page


# --- facts ------------------------------------------------------------------------------------------------


def _summary(report: DataReport) -> str:
    images = sum(split.images for split in report.splits)
    boxes = sum(split.boxes for split in report.splits)
    view = report.view
    return (
        f'<p class="dim">{_safe(report.format)} data set of {images:,} images and {boxes:,} boxes in '
        f"{_safe(', '.join(split.name for split in report.splits))}. Judged for the recipe "
        f"<code>{_safe(view.recipe)}</code>: short side {view.data.image_size}, long side at most "
        f"{view.data.max_size}, {view.num_queries} queries, levels of stride "
        f"{', '.join(map(str, view.strides))}.</p>"
    )


def _remarks(report: DataReport) -> str:
    sentences = [remark.message for remark in report.remarks]
    items = _list(sentences) if sentences else "<p>Nothing that would need a change.</p>"
    if report.forecast is not None:
        items += f"<h3>Forecast of training here</h3>{_list(forecast_sentences(report.forecast))}"
    return items


def _problems(report: DataReport) -> str:
    content = _list(f"{each.where} cannot be used: {each.message}" for each in report.unusable)
    for split in report.splits:
        for found in (split.problems, split.notes):
            content += "".join(_kind(split, kind, each) for kind, each in grouped(found).items())
    if report.problem_count == 0:
        looked = {"headers": "; only the headers of images were read", "no": "; images were not opened"}
        how = report.splits[0].images_checked
        content = f"<p>No problems found{looked.get(how, '')}.</p>" + content
    return content


def _kind(split: SplitReport, kind: str, problems: Sequence[Problem]) -> str:
    items = [f"<code>{_safe(each.where)}</code>: {_safe(each.message)}" for each in problems[:LISTED]]
    if len(problems) > LISTED:
        items.append(f"and {len(problems) - LISTED:,} more")
    title = f"{_safe(split.name)}: {len(problems):,} &times; {_safe(kind)}"
    return f"<details><summary>{title}</summary><ul>{_items(items)}</ul></details>"


def _overview(report: DataReport) -> str:
    splits = report.splits
    rows = [
        ("images", [f"{split.images:,}" for split in splits]),
        ("without objects", [f"{split.empty_images:,}" for split in splits]),
        ("smallest (width x height)", [_pixels(split.smallest_image) for split in splits]),
        ("largest", [_pixels(split.largest_image) for split in splits]),
        ("boxes", [f"{split.boxes:,}" for split in splits]),
        ("of them crowds", [f"{split.crowds:,}" for split in splits]),
        ("of them difficult", [f"{split.difficult:,}" for split in splits]),
        ("objects per image, mean", [f"{split.objects_mean:.1f}" for split in splits]),
        ("objects per image, max", [f"{split.objects_max:,}" for split in splits]),
        (f"images with more than {report.view.num_queries}", [f"{split.over_queries:,}" for split in splits]),
        ("small (area < 32²)", [f"{split.small:.0%}" for split in splits]),
        ("medium (area < 96²)", [f"{split.medium:.0%}" for split in splits]),
        ("large", [f"{split.large:.0%}" for split in splits]),
    ]
    body = "".join(f"<tr><td>{_safe(name)}</td>{_cells(cells)}</tr>" for name, cells in rows)
    return _table(["", *(split.name for split in splits)], body)


def _classes(report: DataReport) -> str:
    rows = report.class_rows()
    most = [max([1, *(row[3][column] or 0 for row in rows)]) for column in range(len(report.splits))]
    body = ""
    for index, category_id, name, boxes in rows[:CLASSES_SHOWN]:
        body += f"<tr><td>{'-' if index is None else index}</td><td>{category_id}</td>"
        body += f'<td class="name">{_safe(name)}</td>'
        for count, largest in zip(boxes, most, strict=True):
            if not count:
                body += f'<td class="none">{"-" if count is None else 0}</td>'
            else:
                body += f'<td class="bar" style="--share:{100 * count / largest:.1f}%">{count:,}</td>'
        body += "</tr>"
    more = f"<p>and {len(rows) - CLASSES_SHOWN:,} more</p>" if len(rows) > CLASSES_SHOWN else ""
    head = ["row of the class head", "id", "class", *(f"boxes {split.name}" for split in report.splits)]
    return _table(head, body) + more


def _sizes(report: DataReport) -> str:
    splits, view = report.splits, report.view
    body = ""
    for row, name in enumerate(bin_names()):
        body += f"<tr><td>{_safe(name)}</td>"
        for split in splits:
            if not split.sizes.count:
                body += '<td class="none">-</td>'
                continue
            share = split.sizes.bins[row] / split.sizes.count
            body += f'<td class="bar" style="--share:{100 * share:.1f}%">{share:.0%}</td>'
        body += "</tr>"
    histogram = _table([f"cells of level 1 ({view.strides[0]} px)", *(split.name for split in splits)], body)

    body = ""
    for split in splits:
        body += f"<tr><td>{_safe(split.name)}, pixels</td>"
        body += _cells(spread(split.sizes, 1, 0)) + "</tr>"
        for level, stride in enumerate(view.strides, start=1):
            body += f"<tr><td>{_safe(split.name)}, cells of level {level} ({stride} px)</td>"
            body += _cells(spread(split.sizes, stride, 1)) + "</tr>"
    return (
        '<p class="dim">Square root of the area, after the resizing for evaluation; in training the short '
        f"side is one of {', '.join(map(str, view.data.train_sizes))}. What is smaller than a cell of the "
        f"finest level is hard to tell from its surroundings.</p>{histogram}<h3>Spread</h3>"
        + _table(["", *QUANTILES], body)
    )


# --- pictures ---------------------------------------------------------------------------------------------


def _gallery(report: DataReport, section: Section, hint: str) -> str:
    figures = [
        figure
        for example in report.examples
        if example.section == section and (figure := _figure(example, report.view.data.max_pixels))
    ]
    if not figures:
        return ""
    text = f'<p class="dim">{_safe(hint)}</p>' if hint else ""
    if section == "duplicates":
        text += f'<p class="dim">At most {MOST_BITS} of the 256 bits of their hashes differ.</p>'
    return f'{text}<div class="gallery">{"".join(figures)}</div>'


def _figure(example: Example, max_pixels: int) -> str:
    """The picture and its boxes as one SVG; nothing where the picture does not open."""
    try:
        opened = open_image(example.path, annotated_size=example.size, max_pixels=max_pixels)
    except UserError:  # listed among the problems
        return ""
    picture = opened.picture
    x0, y0, x1, y1 = example.crop_xyxy or (0, 0, picture.width, picture.height)
    left, top, right, bottom = x0, y0, x1, y1
    for box in example.boxes:
        if box.suspected:  # room for what lies outside, up to half a picture
            left = max(-picture.width // 2, min(left, int(box.box_xyxy[0]) - 2))
            top = max(-picture.height // 2, min(top, int(box.box_xyxy[1]) - 2))
            right = min(picture.width * 3 // 2, max(right, int(box.box_xyxy[2]) + 2))
            bottom = min(picture.height * 3 // 2, max(bottom, int(box.box_xyxy[3]) + 2))
    inside = [box for box in example.boxes if box.suspected or _overlaps(box, (x0, y0, x1, y1))]
    shapes = "".join(_shape(box, right - left) for box in inside)
    name = f"{example.split}: {example.file_name}"
    crisp = ' class="crisp"' if example.crop_xyxy else ""
    return (
        f'<figure><button type="button" aria-label="enlarge {_safe(name)}">'
        f'<svg{crisp} viewBox="{left} {top} {right - left} {bottom - top}" role="img" '
        f'aria-label="{_safe(name)}, {len(inside)} boxes">'
        f'<image x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}" '
        f'href="{_data_url(picture.crop((x0, y0, x1, y1)))}"/>{shapes}</svg></button>'
        f"<figcaption><strong>{_safe(name)}</strong><br>{_safe(example.caption)}"
        f'<div class="legend">{_legend(inside)}</div></figcaption></figure>'
    )


def _overlaps(box: ExampleBox, part: tuple[int, int, int, int]) -> bool:
    x0, y0, x1, y1 = box.box_xyxy
    return x0 < part[2] and x1 > part[0] and y0 < part[3] and y1 > part[1]


def _shape(box: ExampleBox, width: int) -> str:
    x0, y0, x1, y1 = box.box_xyxy
    title = f"<title>{_safe(box.name)}</title>"
    if box.suspected and (abs(x1 - x0) < 0.01 * width or abs(y1 - y0) < 0.01 * width):
        # too thin to be seen: a ring around it
        return (
            f'<circle class="suspect" cx="{(x0 + x1) / 2:g}" cy="{(y0 + y1) / 2:g}" r="{0.03 * width:g}">'
            f"{title}</circle>"
        )
    place = f'x="{min(x0, x1):g}" y="{min(y0, y1):g}" width="{abs(x1 - x0):g}" height="{abs(y1 - y0):g}"'
    if box.suspected:
        return f'<rect class="suspect" {place}>{title}</rect>'
    other = "" if box.marked else ' class="other"'
    return f'<rect class="under" {place}/><rect{other} style="stroke:{_colour(box)}" {place}>{title}</rect>'


def _legend(boxes: Sequence[ExampleBox]) -> str:
    counts: dict[tuple[str, str], int] = {}
    for box in boxes:
        key = (box.name, _colour(box))
        counts[key] = counts.get(key, 0) + 1
    return " ".join(
        f'<span><i style="background:{colour}"></i>{_safe(name)} {count}</span>'
        for (name, colour), count in counts.items()
    )


def _colour(box: ExampleBox) -> str:
    """Neighbouring classes are far apart on the wheel: the golden angle between them."""
    return "#ff2d2d" if box.suspected else f"hsl({(150 + 137.5 * box.index) % 360:.0f} 90% 58%)"


def _data_url(picture: Image.Image) -> str:
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


# --- elements ---------------------------------------------------------------------------------------------


def _safe(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return html.escape(printable, quote=True)


def _list(sentences: Iterable[str]) -> str:
    items = _items(map(_safe, sentences))
    items = re.sub(r"`([^`<>]+)`", r"<code>\1</code>", items)
    items = re.sub(r"(--[\w.-]+ (?:\d+|\[[\d,]+\]))", r'<code class="option">\1</code>', items)
    return f"<ul>{items}</ul>" if items else ""


def _items(contents: Iterable[str]) -> str:
    return "".join(f"<li>{content}</li>" for content in contents)


def _table(head: Iterable[str], body: str) -> str:
    cells = "".join(f'<th scope="col">{_safe(name)}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(texts: Iterable[str]) -> str:
    return "".join(f"<td>{_safe(text)}</td>" for text in texts)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
