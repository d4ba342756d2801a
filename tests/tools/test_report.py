"""The report page: complete, escaped, self-contained."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from keras_lightnets.tools.export import report


class Reader(HTMLParser):
    """Collects tags that stay open and every address."""

    def __init__(self, page):
        super().__init__()
        self.open, self.links, self.wrong = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)
        for key, value in attributes:
            if key in ("href", "src", "xlink:href", "srcset", "action"):
                self.links.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.wrong.append(tag)


def content():
    image = np.zeros((40, 60, 3), np.uint8)
    boxes = np.asarray([[5, 6, 25, 30.5]])
    return report.Report(
        "A <title> & more",
        facts={"mAP": 0.51234, "bytes": 4195344},
        tables=[
            report.Table("Files", ["file", "mAP"], [["<b>int8", 0.5], ["none", None]])
        ],
        charts=[
            report.Chart("Loss", "epoch", "loss", {"train": [(0, 2.0), (1, 1.0)]}),
            report.Chart("Gap", "x", "y", {"a": [(0, 1), (1, math.nan), (2, 3)]}),
            report.Chart("Empty", "x", "y", {"a": []}),
            report.Chart("Flat", "x", "y", {"a": [(0, 1.0), (1, 1.0)]}),
        ],
        pictures=[report.Picture(image, boxes, [1], ["cat 0.91"], "a.jpg")],
        commands=["make demo"],
    )


def test_page_is_whole_and_needs_nothing_else(tmp_path):
    path = report.write_report(tmp_path / "deep" / "report.html", content())
    page = path.read_text()
    reader = Reader(page)
    assert reader.wrong == []
    assert reader.open == []
    assert [link[:22] for link in reader.links] == ["data:image/jpeg;base64"]
    assert not re.search(r"url\(|@import|<script|https?://", page)
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_texts_are_escaped_and_numbers_readable():
    page = report.render(content())
    assert "A &lt;title&gt; &amp; more" in page
    assert "&lt;b&gt;int8" in page
    assert "<dd>0.5123</dd>" in page
    assert "<dd>4,195,344</dd>" in page
    assert '<td class="n">–</td>' in page


def test_boxes_lie_where_they_were_found():
    page = report.render(content())
    assert 'viewBox="0 0 60 40"' in page
    assert 'x="5.0" y="6.0" width="20.0" height="24.5"' in page


def test_missing_values_break_a_line():
    page = report.render(content())
    paths = re.findall(r'<path d="([^"]*)"', page)
    assert [path.count("M") for path in paths] == [1, 2, 1]
    assert "nothing measured" in page
    assert "nan" not in page


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.87), (-3, 250), (5, 5.1)])
def test_ticks_span_the_values(low, high):
    ticks = report._ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high - 1e-9
    assert 3 <= len(ticks) <= 9


def test_bad_content_is_named():
    table = report.Table("Files", ["a", "b"], [[1]])
    with pytest.raises(ValueError, match="'Files' has 2 columns; a row has 1"):
        report.render(report.Report("x", tables=[table]))
    picture = report.Picture(np.zeros((4, 4)), np.zeros((0, 4)), [], [])
    with pytest.raises(ValueError, match="uint8 RGB"):
        report.render(report.Report("x", pictures=[picture]))
