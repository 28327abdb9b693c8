// Shows what a chart's marks say: of lines all values at the token count under the pointer, else the nearest mark.
// Arrow keys do the same for who has no pointer. Without this script every value is in the table behind the chart.
(() => {
  const tip = document.getElementById("tip");
  const TOKENS = /, ([\d,]+ tokens?): /;
  let shownAt = [0, 0];

  function marksOf(plot) {
    return [...plot.querySelectorAll("svg [role=graphics-symbol][aria-label]:not([aria-roledescription=axis])")].map((mark) => {
      const box = mark.getBoundingClientRect();
      return { x: box.left + box.width / 2, y: box.top + box.height / 2, left: box.left, right: box.right, said: mark.getAttribute("aria-label") };
    });
  }

  function show(plot, lines, x, y) {
    const text = document.createElement("div");
    tip.replaceChildren(text);
    if (lines.length > 1) {
      const head = document.createElement("b");
      head.textContent = (lines[0].match(TOKENS) || ["", ""])[1];
      tip.prepend(head);
      text.textContent = lines.map((line) => line.replace(TOKENS, ": ")).join("\n");
    } else {
      text.textContent = lines[0];
    }
    tip.hidden = false;
    shownAt = [scrollX, scrollY];
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 8))}px`;
  }

  for (const plot of document.querySelectorAll(".plot")) {
    const together = plot.parentElement.dataset.marks === "lines";
    let at = -1;

    function atX(marks, x) {
      const near = marks.reduce((best, mark) => (Math.abs(mark.x - x) < Math.abs(best.x - x) ? mark : best));
      return marks.filter((mark) => Math.abs(mark.x - near.x) < 1).sort((a, b) => b.y - a.y);
    }

    plot.addEventListener("pointermove", (event) => {
      const marks = marksOf(plot);
      if (!marks.length) return;
      const distance = (mark) => {
        const dx = Math.max(mark.left - event.clientX, event.clientX - mark.right, 0);
        return dx * dx + (mark.y - event.clientY) ** 2;
      };
      const found = together ? atX(marks, event.clientX) : [marks.reduce((best, mark) => (distance(mark) < distance(best) ? mark : best))];
      show(plot, found.map((mark) => mark.said), event.clientX, event.clientY);
    });
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") tip.hidden = true;
      if (!step) return;
      event.preventDefault();
      const marks = marksOf(plot);
      const stops = together
        ? [...new Set(marks.map((mark) => Math.round(mark.x)))].sort((a, b) => a - b).map((x) => atX(marks, x))
        : marks.map((mark) => [mark]);
      at = Math.max(0, Math.min(stops.length - 1, at + step));
      show(plot, stops[at].map((mark) => mark.said), stops[at][0].x, stops[at][0].y);
    });
    for (const leaving of ["pointerleave", "blur"]) plot.addEventListener(leaving, () => (tip.hidden = true));
  }
  // Focus brings a chart into view, and the event of that scroll comes a frame later: by then the page stands where the
  // values were shown.
  addEventListener("scroll", () => (tip.hidden ||= scrollX !== shownAt[0] || scrollY !== shownAt[1]), { passive: true });
})();
