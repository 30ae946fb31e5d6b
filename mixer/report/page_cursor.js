// A chart's cursor: by pointer, touch and keys. It stands on recorded steps
// only, and says what was recorded, neither smoothed nor thinned out.

// Every place in sight where a shown curve has a record.
function places(chart) {
  const lists = chart.lines().map((series) => chart.xs(series));
  if (!lists.length) return [];
  if (chart.placed?.lists.length !== lists.length
      || chart.placed.lists.some((list, i) => list !== lists[i])) {
    chart.placed = { lists, all: union(lists) };
  }
  const { all } = chart.placed;
  const [x0, x1] = chart.domain;
  return all.slice(firstFrom(all, x0), firstFrom(all, x1)
    + (all[firstFrom(all, x1)] === x1 ? 1 : 0));
}

// [{series, step, value, smoothed, off}]: each curve's record nearest to x.
function readings(chart, x) {
  return chart.lines().filter((s) => s.steps.length).map((series) => {
    const xs = chart.xs(series);
    const i = nearest(xs, x);
    const weight = series.smooths ? chart.view.weight : 0;
    let share = null;
    if (series.stacked) {
      const { steps, lower, upper } = stacked(chart.spec).get(series);
      const j = firstFrom(steps, series.steps[i]);
      share = upper[j] - lower[j];
    }
    return {
      series, x: xs[i], step: series.steps[i], value: series.values[i], share,
      smoothed: weight ? series.smoothed[i] : null, off: xs[i] !== x,
    };
  });
}

function moveCursor(chart, x, spoken) {
  const all = places(chart);
  chart.cursor = all.length && x !== null ? all[nearest(all, x)] : null;
  showCursor(chart);
  if (spoken && chart.cursor !== null) {
    say(`${heading(chart)}: ${readings(chart, chart.cursor).map((r) =>
      `${r.series.label} ${reading(r)}${r.off ? ` at step ${r.step}` : ""}`)
      .join("; ")}`);
  }
}

function heading(chart) {
  const { axis } = chart.view;
  return axis === "step" ? `step ${whole(chart.cursor)}`
    : `${number(chart.cursor)} ${AXES[axis]}`;
}

function reading(r) {
  if (r.share !== null && r.value !== null) {
    return `${duration(r.value)} (${percent(r.share)})`;
  }
  return number(r.value);
}

function showCursor(chart) {
  const { tip, layer } = chart;
  const [x0, x1] = chart.domain;
  if (chart.cursor === null || chart.cursor < x0 || chart.cursor > x1) {
    layer.replaceChildren();
    tip.hidden = true;
    return;
  }
  const px = chart.x(chart.cursor);
  const found = readings(chart, chart.cursor);
  layer.replaceChildren(
    svg("line", {
      class: "cross", x1: px, x2: px, y1: MARGIN.top,
      y2: HEIGHT - MARGIN.bottom,
    }),
    ...found.filter((r) => !r.series.stacked && r.value !== null
      && r.x >= x0 && r.x <= x1 && chart.y(r.value) !== null)
      .map((r) => svg("circle", {
        cx: chart.x(r.x), cy: chart.y(r.value), r: 4,
        style: { fill: r.series.colour },
      })));
  tip.replaceChildren(el("strong", null, heading(chart)),
    readingTable(chart, found));
  tip.hidden = false;
  beside(chart, px);
}

// Beside the cursor, or below the chart where there is no room.
function beside(chart, px) {
  const { tip, width } = chart;
  tip.classList.remove("under");
  tip.style.left = "0";
  const wide = tip.offsetWidth;
  if (width - px > wide + 14) tip.style.left = `${px + 12}px`;
  else if (px > wide + 14) tip.style.left = `${px - wide - 12}px`;
  else {
    tip.classList.add("under");
    tip.style.left = `${Math.max(0, Math.min(px - wide / 2, width - wide))}px`;
  }
}

// A row for each run and a column for each metric; of one run, a row for each
// metric.
function readingTable(chart, found) {
  const { spec, view } = chart;
  const cell = (r) => el("td", null,
    el("span", { class: "value" }, r ? reading(r) : "–"),
    r && r.smoothed !== null ? el("span", { class: "aside" },
      `smooth ${number(r.smoothed)}`) : null,
    r && (r.off || view.axis !== "step") ? el("span", { class: "aside" },
      `at ${whole(r.step)}`) : null);
  if (spec.stack || view.runs.length === 1 || spec.metrics.length === 1) {
    // The top of a stack first, as it is drawn.
    const rows = spec.stack ? found.slice().reverse() : found;
    return el("table", null, rows.map((r) => el("tr", null,
      el("td", null, sample(r.series)),
      el("th", { scope: "row" }, r.series.label), cell(r))));
  }
  const runs = view.runs.filter((run) =>
    found.some((r) => r.series.run === run));
  const metrics = spec.metrics.map((metric) =>
    spec.series.find((series) => series.metric === metric));
  return el("table", null,
    el("thead", null, el("tr", null, el("td", { colspan: 2 }),
      metrics.map((series) => el("th", { scope: "col" },
        sample({ ...series, colour: "currentColor" }), " ",
        // A place to break the line.
        series.metric.split("/").flatMap((word, i) =>
          (i ? ["/", el("wbr"), word] : [word])))))),
    el("tbody", null, runs.map((run) => el("tr", null,
      el("td", null, el("span", { class: "swatch",
        style: { background: run.colour } })),
      el("th", { scope: "row" }, run.name),
      metrics.map((series) => cell(found.find((r) =>
        r.series.run === run && r.series.metric === series.metric)))))));
}

function listen(chart) {
  const { plot, view } = chart;
  const place = (event) => chart.back(Math.max(MARGIN.left, Math.min(
    event.clientX - plot.getBoundingClientRect().left,
    chart.width - MARGIN.right)));
  let from = null;  // Where a drag began.
  const select = (to) => {
    const [a, b] = [from, to].sort((p, q) => p - q).map(chart.x);
    chart.layer.replaceChildren(svg("rect", {
      class: "selection", x: a, width: b - a, y: MARGIN.top,
      height: HEIGHT - MARGIN.top - MARGIN.bottom,
    }));
    chart.tip.hidden = true;
    return b - a;
  };
  plot.addEventListener("pointerdown", (event) => {
    chart.ready();
    if (event.pointerType === "touch") moveCursor(chart, place(event));
    else if (event.button === 0) {
      from = place(event);
      plot.setPointerCapture(event.pointerId);
    }
  });
  plot.addEventListener("pointermove", (event) => {
    chart.ready();
    if (from !== null) select(place(event));
    else moveCursor(chart, place(event));
  });
  plot.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const to = place(event);
    const far = select(to) > 5;
    const [a, b] = [Math.min(from, to), Math.max(from, to)];
    from = null;
    if (far) view.zoom(a, b);
    moveCursor(chart, to);
  });
  plot.addEventListener("pointercancel", () => { from = null; });
  plot.addEventListener("pointerleave", (event) => {
    if (from === null && event.pointerType !== "touch") {
      moveCursor(chart, null);
    }
  });
  plot.addEventListener("blur", () => moveCursor(chart, null));
  plot.addEventListener("dblclick", () => view.reset());
  plot.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    view.zoomBy(event.deltaY > 0 ? 1.25 : 0.8, place(event));
  }, { passive: false });
  plot.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && from !== null) {
      from = null;
      showCursor(chart);
      return;
    }
    chart.ready();
    const act = keys(chart, event);
    if (act) {
      event.preventDefault();
      act();
    }
  });
}

function keys(chart, event) {
  const { view, cursor } = chart;
  const by = (n) => () => {
    const all = places(chart);
    if (!all.length) return;
    const at = cursor === null ? (n > 0 ? -1 : all.length)
      : nearest(all, cursor);
    const next = Math.max(0, Math.min(at + n, all.length - 1));
    moveCursor(chart, all[next], true);
  };
  const zoom = (factor) => () => {
    view.zoomBy(factor, cursor);
    const [from, to] = chart.domain;
    say(`${AXES[view.axis]} ${number(from)} to ${number(to)}`);
  };
  const all = () => {
    view.reset();
    say("all of the axis");
  };
  switch (event.key) {
    case "ArrowLeft": return by(event.shiftKey ? -10 : -1);
    case "ArrowRight": return by(event.shiftKey ? 10 : 1);
    case "Home": return by(-Infinity);
    case "End": return by(Infinity);
    case "+": case "=": return zoom(0.5);
    case "-": case "_": return zoom(2);
    case "0": case "Escape": return all;
    case "l": case "L": return chart.logButton && (() => {
      chart.logButton.click();
      say(chart.log ? `logarithmic scale. ${chart.note}` : "linear scale");
    });
    default: return null;
  }
}
