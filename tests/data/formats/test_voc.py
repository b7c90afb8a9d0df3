from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deformable_detr.data.formats import list_splits, read_split
from deformable_detr.errors import UserError
from tests.support.dataset_files import voc_xml, write_image, write_voc
from tests.support.paths import data_set

CAT = ("cat", (1.0, 2.0, 11.0, 22.0))
DOG = ("dog", (5.0, 5.0, 50.0, 40.0))


def a_set(root: Path) -> Path:
    return write_voc(root, {"train": {"a": voc_xml("a.jpg", [CAT, DOG]), "b": voc_xml("b.jpg", [])}})


def break_a(root: Path, old: str, new: str) -> None:
    file = root / "Annotations" / "a.xml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("split", "images", "boxes", "problems"),
    [
        (
            "train",
            205,
            2804,
            [("zero-size-box", "Annotations/BloodImage_00343.xml:55")],
        ),
        (
            "val",
            87,
            1137,
            [("zero-size-box", "Annotations/BloodImage_00338.xml:163")],
        ),
        ("test", 72, 945, []),
    ],
)
def test_bccd_names_its_empty_boxes_by_file_and_line(
    split: str, images: int, boxes: int, problems: list[tuple[str, str]]
) -> None:
    result = read_split(data_set("bccd_voc"), split)
    assert result.format == "voc"
    assert len(result) == images
    assert sum(map(len, result.images)) == boxes
    assert [(problem.kind, problem.where) for problem in result.problems] == problems
    for problem in result.problems:
        file, line = problem.where.split(":")
        lines = (data_set("bccd_voc") / file).read_text().splitlines()
        assert "<bndbox>" in lines[int(line) - 1]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bccd_equals_its_coco_edition(split: str) -> None:
    voc = read_split(data_set("bccd_voc"), split)
    coco = read_split(data_set("bccd_coco"), split)
    assert voc.classes.names == ("Platelets", "RBC", "WBC")
    by_name = {image.file_name: image for image in coco.images}
    assert len(by_name) == len(voc)
    for image in voc.images:
        other = by_name[image.file_name]
        assert image.size == other.size
        np.testing.assert_array_equal(image.boxes_xyxy, other.boxes_xyxy)
        np.testing.assert_array_equal(image.area, other.area)
        names = [voc.classes.name(label) for label in image.labels]
        assert names == [coco.classes.name(label) for label in other.labels]


def test_dtypes_shapes_and_difficult(tmp_path: Path) -> None:
    a_set(tmp_path)
    break_a(tmp_path, "<difficult>0<", "<difficult>1<")
    first, second = read_split(tmp_path, "train", strict=True).images
    assert first.file_name == "a.jpg"
    assert first.path == tmp_path / "JPEGImages" / "a.jpg"
    assert first.size == (48, 64)
    np.testing.assert_array_equal(first.boxes_xyxy, [[1, 2, 11, 22], [5, 5, 50, 40]])
    assert first.difficult.tolist() == [True, False]
    assert first.area.tolist() == [200, 45 * 35]
    assert (first.labels.dtype, first.area.dtype) == (np.int64, np.float64)
    assert second.boxes_xyxy.shape == (0, 4)


def test_classes_come_from_all_splits(tmp_path: Path) -> None:
    write_voc(
        tmp_path,
        {
            "train": {"a": voc_xml("a.jpg", [DOG])},
            "val": {"b": voc_xml("b.jpg", [CAT]), "c": "<annotation><object><name>elk"},
        },
    )
    train, val = read_split(tmp_path, "train"), read_split(tmp_path, "val")
    assert train.classes == val.classes
    assert train.classes.names == ("cat", "dog")
    assert train.classes.category_ids == (0, 1)
    assert train.problems == ()
    assert train.images[0].labels.tolist() == [1]


def test_parts_of_objects_are_not_objects(tmp_path: Path) -> None:
    a_set(tmp_path)
    corners = "<xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax>"
    part = f"<part><name>head</name><bndbox>{corners}</bndbox></part>"
    break_a(tmp_path, "</object>", f"{part}</object>")
    split = read_split(tmp_path, "train", strict=True)
    assert split.classes.names == ("cat", "dog")
    np.testing.assert_array_equal(split.images[0].boxes_xyxy[0], CAT[1])


def test_image_ids_are_the_numbers_in_the_names_where_there_are(tmp_path: Path) -> None:
    xml = voc_xml("x.jpg", [CAT])
    numbered = write_voc(tmp_path / "n", {"train": {"000012": xml, "000007": xml}, "val": {"3": xml}})
    assert [image.image_id for image in read_split(numbered, "train").images] == [7, 12]
    clash = write_voc(tmp_path / "c", {"train": {"012": xml, "7": xml}, "val": {"12": xml}})
    assert [image.image_id for image in read_split(clash, "train").images] == [1, 3]
    named = write_voc(tmp_path / "w", {"train": {"b": xml, "d": xml}, "val": {"a": xml, "c": xml}})
    assert [(image.file_name, image.image_id) for image in read_split(named, "train").images] == [
        ("b.jpg", 2),
        ("d.jpg", 4),
    ]


def test_lists_of_single_classes_are_no_splits(tmp_path: Path) -> None:
    a_set(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("a  1\nb -1\n")
    assert list_splits(tmp_path) == ("train",)


def test_names_with_blanks(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": {"image 1": voc_xml("image 1.jpg", [CAT]), "image 2": voc_xml("", [])}})
    assert len(read_split(tmp_path, "train", strict=True)) == 2


@pytest.mark.parametrize("folder", ["VOC2012", "VOCdevkit/VOC2007"])
def test_years_below_the_root(tmp_path: Path, folder: str) -> None:
    a_set(tmp_path / folder)
    assert len(read_split(tmp_path, "train", strict=True)) == 2


def test_several_years_must_be_named(tmp_path: Path) -> None:
    a_set(tmp_path / "VOC2007")
    a_set(tmp_path / "VOC2012")
    with pytest.raises(UserError, match=r"several Pascal VOC data sets: name one of .*VOC2007, .*VOC2012"):
        read_split(tmp_path, "train")
    assert len(read_split(tmp_path / "VOC2012", "train")) == 2


def test_images_of_other_suffixes_and_by_file_name(tmp_path: Path) -> None:
    a_set(tmp_path)
    pictures = tmp_path / "JPEGImages"
    write_image(pictures / "a.png").with_name("a.jpg").unlink()
    (pictures / "b.jpg").rename(pictures / "other.jpg")
    (tmp_path / "Annotations" / "b.xml").write_text(voc_xml("other.jpg", []))
    split = read_split(tmp_path, "train", strict=True)
    assert [image.file_name for image in split.images] == ["a.png", "other.jpg"]


# --- broken -----------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, str, str, str, int]] = {
    # name: old text, new text, kind of the problem, where, boxes left of 2
    "zero size": ("<xmax>11.0<", "<xmax>1.0<", "zero-size-box", "a.xml:6", 1),
    "negative": ("<ymax>22.0<", "<ymax>1<", "negative-box", "a.xml:6", 1),
    "outside": (
        "<xmin>1.0</xmin><ymin>2.0</ymin><xmax>11.0<",
        "<xmin>65</xmin><ymin>2</ymin><xmax>70<",
        "box-outside-image",
        "a.xml:6",
        1,
    ),
    "over the border": ("<xmax>50.0<", "<xmax>99<", "box-over-border", "a.xml:10", 2),
    "NaN": ("<xmax>11.0<", "<xmax>nan<", "box-not-finite", "a.xml:6", 1),
    "infinity": ("<xmax>11.0<", "<xmax>1e999<", "box-not-finite", "a.xml:6", 1),
    "text": ("<xmax>50.0<", "<xmax>wide<", "not-a-number", "a.xml:10", 1),
    "empty number": ("<xmax>50.0<", "<xmax><", "not-a-number", "a.xml:10", 1),
    "no xmax": ("<xmax>50.0</xmax>", "", "malformed-box", "a.xml:10", 1),
    "no name": ("<name>dog</name>", "", "missing-name", "a.xml:8", 1),
    "no size": ("<width>64</width>", "", "missing-size", "a.xml", 2),
    "size 0": ("<width>64</width>", "<width>0</width>", "missing-size", "a.xml", 2),
    "size as text": ("<width>64</width>", "<width>wide</width>", "missing-size", "a.xml", 2),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_objects_are_dropped_and_named(tmp_path: Path, case: str) -> None:
    old, new, kind, where, boxes_left = BROKEN[case]
    a_set(tmp_path)
    break_a(tmp_path, old, new)
    split = read_split(tmp_path, "train")
    (problem,) = split.problems
    assert (problem.kind, problem.where) == (kind, f"Annotations/{where}")
    assert len(split) == 2
    assert len(split.images[0]) == boxes_left
    assert split.images[0].size == (48, 64)
    with pytest.raises(UserError, match=r"has 1 problem .*a\.xml"):
        read_split(tmp_path, "train", strict=True)


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>\n<annotation><object><name>&i;</name></object></annotation>"
)
EXTERNAL = (
    '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n'
    "<annotation><object><name>&x;</name></object></annotation>"
)


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "a.xml", "empty"),
        ("<annotation><object>", "a.xml:1", "not well-formed"),
        ("<annotation>\n\n</object></annotation>", "a.xml:3", "mismatched tag"),
        ("class,x,y\n1,2,3", "a.xml:1", "not well-formed"),
        ("<html><body/></html>", "a.xml:1", "root is <html>"),
        ("<annotation>&undefined;</annotation>", "a.xml:1", "undefined entity"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "a.xml", "encoding"),
        (BOMB, "a.xml:2", "document type"),
        (EXTERNAL, "a.xml:1", "document type"),
        ("<annotation>" + " " * (17 * 2**20) + "</annotation>", "a.xml", "too many"),
    ],
    ids=["empty", "cut", "tags", "csv", "html", "entity", "encoding", "bomb", "external", "huge"],
)
def test_unreadable_annotations_leave_their_image_out(
    tmp_path: Path, text: str, where: str, message: str
) -> None:
    a_set(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    split = read_split(tmp_path, "train")
    (problem,) = split.problems
    assert problem.kind == "unreadable-annotation"
    assert problem.where == f"Annotations/{where}"
    assert message in problem.message
    assert [image.file_name for image in split.images] == ["b.jpg"]
    assert "root:" not in problem.message


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("c", "missing-annotation"),
        ("a", "duplicate-image"),
        ("../../etc/passwd", "outside-root"),
        ("/etc/passwd", "outside-root"),
        ("a\0", "outside-root"),
    ],
)
def test_broken_lists(tmp_path: Path, line: str, kind: str) -> None:
    a_set(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(f"a\n\nb\n{line}\n")
    split = read_split(tmp_path, "train")
    (problem,) = split.problems
    assert (problem.kind, problem.where) == (kind, "ImageSets/Main/train.txt:4")
    assert len(split) == 2


def test_missing_images_and_nothing_left(tmp_path: Path) -> None:
    a_set(tmp_path)
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    split = read_split(tmp_path, "train")
    assert [(problem.kind, problem.where) for problem in split.problems] == [
        ("missing-image", "Annotations/a.xml")
    ]
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(UserError, match="no image that can be used"):
        read_split(tmp_path, "train")
    (tmp_path / "JPEGImages").rmdir()
    with pytest.raises(UserError, match="JPEGImages cannot be listed"):
        read_split(tmp_path, "train")


def test_no_size_and_no_picture(tmp_path: Path) -> None:
    a_set(tmp_path)
    break_a(tmp_path, "<width>64</width>", "")
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"no picture")
    split = read_split(tmp_path, "train")
    assert [problem.kind for problem in split.problems] == ["unreadable-image"]
    assert len(split) == 1


def test_an_empty_list(tmp_path: Path) -> None:
    a_set(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(UserError, match=r"no image that can be used \(it lists none\)"):
        read_split(tmp_path, "train")


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    a_set(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"train\.txt is not text in UTF-8"):
        read_split(tmp_path, "train")


sides = st.floats(1.25, 20, allow_nan=False)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), st.floats(0, 40), st.floats(0, 25), sides, sides)
objects = st.lists(st.tuples(st.sampled_from(["cat", "dög", "a <b> & 'c'"]), boxes), max_size=4)


@given(st.lists(objects, min_size=1, max_size=3))
@settings(max_examples=25)
def test_round_trip(images: list[list[tuple[str, tuple[float, float, float, float]]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = {f"i{index}": row for index, row in enumerate(images)}
        write_voc(Path(folder), {"train": {name: voc_xml(f"{name}.jpg", row) for name, row in named.items()}})
        split = read_split(folder, "train", strict=True)
        assert len(split) == len(named)
        for image in split.images:
            expected = named[image.path.stem]
            assert [split.classes.name(label) for label in image.labels] == [name for name, _ in expected]
            np.testing.assert_array_equal(
                image.boxes_xyxy, np.array([box for _, box in expected]).reshape(-1, 4)
            )


@given(st.binary(max_size=40), st.integers(0, 400))
@settings(max_examples=40)
def test_no_xml_gets_past_the_reader(scrap: bytes, at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        a_set(Path(folder))
        file = Path(folder) / "Annotations" / "a.xml"
        text = file.read_bytes()
        file.write_bytes(text[:at] + scrap + text[at + len(scrap) :])
        split = read_split(folder, "train")
        assert split.images[-1].file_name == "b.jpg"
        assert all(np.isfinite(image.boxes_xyxy).all() for image in split.images)
