"""`build.py report`: one HTML page of what was recorded, planned and compiled.

facts reads everything; older is what --against names; each section's module says what the page shows, in tables and
Vega-Lite charts; drawing makes SVG of those; page renders. Nothing is measured here, and nothing has a time or a path
of the machine in it: the same inputs give the same bytes.
"""
