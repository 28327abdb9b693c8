"""Vega-Lite charts as SVG that stands in the page: colours are CSS variables, so one drawing serves light and dark."""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup

Chart = dict[str, Any]
"""A Vega-Lite specification."""

INSTALL = 'pip install -e ".[report]"'

_VEGA_LITE = "6.4"
# Vega measures text with the font that vl-convert brings, the same on every machine; the page shows its own.
_FONT = "Liberation Sans"
_CONFIG: Chart = {
    "background": None,
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "labelFontSize": 13,
        "titleFontSize": 13,
        "titlePadding": 6,
        "gridColor": "var(--line)",
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
    },
}


def can_draw() -> bool:
    """Whether the library that draws is installed."""
    try:
        import vl_convert  # noqa: F401
    except ImportError:
        return False
    return True


def svg(chart: Chart) -> Markup:
    """The chart as an SVG element that is as wide as its place. ImportError where vl-convert-python is missing."""
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(json.dumps({"config": _CONFIG, **chart}), vl_version=_VEGA_LITE)
    # No width and height of its own, and short numbers: pixels to a hundredth are enough.
    text = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)
    return Markup(text)  # Vega escapes what comes from data
