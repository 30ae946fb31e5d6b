// The confusion matrix and the reliability diagram.

function confusion(p, name, id) {
  const { classes, counts, elsewhere } = p.confusion;
  const sums = counts.map((row, i) => row.reduce((a, b) => a + b, 0)
    + ((elsewhere && elsewhere[i]) || 0));
  const most = Math.max(1, ...counts.flat());
  const others = (elsewhere || []).some((n) => n > 0);
  const readout = el("p", { class: "readout" },
    "Point at a cell, or move through the cells with the arrow keys.");
  const cells = [];
  const shade = (byRow) => cells.forEach((row, i) => row.forEach((cell, j) => {
    const value = j < classes.length ? counts[i][j] : elsewhere[i];
    const share = value / ((byRow ? sums[i] : most) || 1);
    // A root, so that the rare confusions can be seen beside the diagonal.
    cell.style.setProperty("--shade", `${value
      ? 8 + 92 * Math.sqrt(Math.min(1, share)) : 0}%`);
    cell.classList.toggle("deep", Math.sqrt(Math.min(1, share)) > 0.55);
  }));
  const tell = (i, j) => {
    const value = j < classes.length ? counts[i][j] : elsewhere[i];
    const taken = j < classes.length ? `taken for ${name(classes[j])}`
      : "taken for a class not shown";
    return `${name(classes[i])}, ${classes[i] === classes[j]
      ? "right" : taken}: ${whole(value)} of ${whole(sums[i])} (${percent(
      sums[i] ? value / sums[i] : null)})`;
  };
  const go = (i, j) => {
    const row = Math.max(0, Math.min(i, cells.length - 1));
    const column = Math.max(0, Math.min(j, cells[0].length - 1));
    grid.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
    cells[row][column].setAttribute("tabindex", "0");
    cells[row][column].focus();
  };
  const steps = {
    ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0],
    ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity],
  };
  classes.forEach((_, i) => {
    const row = others ? [...counts[i], elsewhere[i]] : counts[i];
    cells.push(row.map((value, j) => {
      const show = () => { readout.textContent = tell(i, j); };
      return el("td", {
        tabindex: i + j === 0 ? "0" : "-1", role: "gridcell",
        class: classes[i] === classes[j] ? "diagonal" : null,
        "aria-label": tell(i, j), onpointerenter: show, onfocus: show,
        onclick: () => go(i, j), onkeydown: (event) => {
          const by = steps[event.key];
          if (!by) return;
          event.preventDefault();
          go(i + by[0], j + by[1]);
        },
      }, classes.length <= 12 || value ? String(value || "") : "");
    }));
  });
  const grid = el("table", {
    class: `matrix${classes.length > 12 ? " dense" : ""}${
      classes.every((c) => name(c).length < 4) ? " short" : ""}`, role: "grid",
    "aria-label": "Confusion matrix, a row for each label",
  },
  el("thead", null, el("tr", null, el("td"),
    [...classes.map(name), ...(others ? ["elsewhere"] : [])].map((text) =>
      el("th", { scope: "col" }, clipped(text))))),
  el("tbody", null, cells.map((row, i) => el("tr", null,
    el("th", { scope: "row" }, clipped(name(classes[i]))), row))));
  shade(true);
  return el("div", { class: "block", id },
    el("div", { class: "heading" }, el("h3", null, "Confusion matrix"),
      choice("Shade", [["row", "Share of the row"], ["count", "Count"]], "row",
        (by) => shade(by === "row"))),
    el("p", { class: "quiet" }, "A row for each label, a column for what it "
      + "was taken for.", p.by_class && p.by_class.length > classes.length
      ? ` The ${classes.length} classes with most confusions.` : ""),
    readout, scrolls("Confusion matrix", grid));
}

function reliability({ ece, bins }) {
  const size = 280;
  const [left, top, right, middle, bottom] = [40, 8, 272, 208, 262];
  const x = (v) => left + v * (right - left);
  const y = (v) => middle - v * (middle - top);
  const most = Math.max(1, ...bins.map((bin) => bin[2]));
  const marks = [0, 0.25, 0.5, 0.75, 1];
  const rows = bins.map(([low, high, count, score, accuracy]) => [
    `${low.toFixed(3)}–${high.toFixed(3)}`, whole(count), percent(score),
    percent(accuracy)]);
  return el("div", { class: "block reliability" },
    el("h3", null, "Calibration"),
    el("p", { class: "quiet" },
      `Expected calibration error ${percent(ece, 2)}. `
      + "Accuracy by the score of the prediction:",
    el("span", { class: "legend" },
      el("span", { class: "swatch over" }), "too sure",
      el("span", { class: "swatch under" }), "not sure enough")),
    svg("svg", {
      viewBox: `0 0 ${size} 292`, role: "img", class: "diagram",
      "aria-label": "Accuracy by score, with the number of examples; the "
        + "table below has the numbers.",
    },
    svg("g", { class: "axes" }, marks.map((v) => [
      svg("line", { x1: left, x2: right, y1: y(v), y2: y(v) }),
      svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, v),
      svg("text", { x: x(v), y: bottom + 14, "text-anchor":
        v === 1 ? "end" : "middle" }, v)]),
    svg("text", { x: (left + right) / 2, y: bottom + 28,
      "text-anchor": "middle" }, "top score (below: examples)")),
    bins.map(([low, high, count, score, accuracy], i) => {
      const text = svg("title", null, `Score ${rows[i][0]}: ${rows[i][1]} `
        + `examples, mean score ${rows[i][2]}, accuracy ${rows[i][3]}`);
      const tall = (bottom - middle - 10) * count / most;
      const wide = Math.max(1, x(high) - x(low) - 2);
      return svg("g", null, text,
        svg("rect", { class: "bar", x: x(low) + 1, width: wide,
          y: y(Math.min(accuracy, score)),
          height: middle - y(Math.min(accuracy, score)) }),
        svg("rect", { class: score > accuracy ? "over" : "under",
          x: x(low) + 1, width: wide,
          y: Math.min(y(accuracy), y(score)),
          height: Math.abs(y(accuracy) - y(score)) }),
        svg("rect", { class: "count", x: x(low) + 1, width: wide,
          y: bottom - tall, height: tall }));
    }),
    svg("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) })),
    el("details", null, el("summary", null, "Numbers"),
      scrolls("Calibration by bin", table(
        ["score", "examples", "mean score", "accuracy"], rows,
        { class: "numbers" }))));
}
