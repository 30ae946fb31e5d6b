// One chart, drawn by uPlot; and what all charts share.

const HEIGHT = 236;

// The axis, its zoom, smoothing, the runs shown.
function makeView(runs) {
  const view = {
    runs, axis: "step", range: null, weight: 0, hidden: new Set(), charts: [],
    listeners: [],
    shown: (series) => !view.hidden.has(series.run.index),
    // Of all curves of the runs shown, so that charts line up.
    full() {
      const ends = view.charts.flatMap((chart) =>
        chart.spec.series.filter(view.shown).flatMap((s) => {
          const xs = chart.xs(s);
          return [xs[0], xs[xs.length - 1]];
        }));
      if (!ends.length) return [0, 1];
      const [low, high] = [Math.min(...ends), Math.max(...ends)];
      return low === high ? [low - 0.5, high + 0.5] : [low, high];
    },
    zoom(from, to) {
      const [low, high] = view.full();
      const least = view.axis === "step" ? 1 : (high - low) * 1e-5;
      const span = Math.max(to - from, least);
      const start = Math.max(low, Math.min(from, high - span));
      view.range = span >= high - low
        ? null : [start, Math.min(high, start + span)];
      view.draw();
    },
    // By a factor, with the place `at` (or the middle) kept where it is.
    zoomBy(factor, at) {
      const [from, to] = view.range || view.full();
      const kept = at === undefined ? (from + to) / 2 : at;
      view.zoom(kept - (kept - from) * factor, kept + (to - kept) * factor);
    },
    reset() {
      view.range = null;
      view.draw();
    },
    // Those near the window now, the others one by one, so that the page
    // answers in between.
    draw() {
      for (const chart of view.charts) chart.age();
      for (const listen of view.listeners) listen();
      clearTimeout(view.timer);
      view.timer = setTimeout(view.drawNext);
    },
    drawNext() {
      const next = view.charts.find((chart) =>
        chart.stale && chart.plot.clientWidth);
      if (!next) return;
      next.ready();
      view.timer = setTimeout(view.drawNext);
    },
    timer: 0,
  };
  return view;
}

function makeChart(spec, view) {
  const tip = el("div", { class: "tip", hidden: true });
  const plot = el("div", { class: "plot", role: "img", "aria-label":
    `${spec.title}: curves. The table beside it has their numbers.` });
  const note = el("p", { class: "note", hidden: true });
  const known = new Map();
  const chart = {
    spec, view, plot, tip, note, log: false, near: false, stale: true,
    touched: false,
    xs(series) {
      const key = `${view.axis}/${series.run.index}/${series.metric}`;
      if (!known.has(key)) {
        known.set(key, along(series.run, series.steps, view.axis));
      }
      return known.get(key);
    },
    lines: () => spec.series.filter(view.shown),
    // What it shows is no longer what it should.
    age() {
      chart.stale = true;
      if (chart.near) chart.ready();
    },
    ready() {
      if (chart.stale && plot.clientWidth) draw(chart);
    },
  };
  const grid = dataTable(chart);
  const logButton = spec.stack ? null : toggle("Log", (on) => {
    chart.log = on;
    chart.age();
  }, { "aria-label": `${spec.title}: logarithmic scale` });
  chart.node = el("figure", { class: "chart", id: `chart-${spec.id}` },
    el("figcaption", null,
      el("h3", { title: spec.title }, spec.title),
      el("div", { class: "actions" }, logButton,
        toggle("Table", (on) => grid.show(on),
          { "aria-label": `${spec.title}: data table` }))),
    key(spec), el("div", { class: "frame" }, plot, tip), note, grid.node);
  const place = (event) => {
    const { left, top } = chart.drawn.over.getBoundingClientRect();
    return { left: event.clientX - left, top: event.clientY - top };
  };
  // A finger makes a mouse's events or none, and leaves at once.
  plot.addEventListener("pointerdown", (event) => {
    chart.touched = event.pointerType === "touch";
    if (!chart.touched || !chart.drawn) return;
    for (const other of view.charts) other.tip.hidden = true;
    chart.drawn.setCursor(place(event));
  });
  plot.addEventListener("wheel", (event) => {
    if ((!event.ctrlKey && !event.metaKey) || !chart.drawn) return;
    event.preventDefault();
    view.zoomBy(event.deltaY > 0 ? 1.25 : 0.8,
      chart.drawn.posToVal(place(event).left, "x"));
  }, { passive: false });
  new ResizeObserver(() => {
    if (chart.drawn && plot.clientWidth !== chart.drawn.width) chart.age();
  }).observe(plot);
  new IntersectionObserver((entries) => {
    chart.near = entries[entries.length - 1].isIntersecting;
    if (chart.near) chart.ready();
  }, { rootMargin: "500px 0px" }).observe(plot);
  return chart;
}

// What the kinds of line mean; whose colour is whose is said above the charts.
function key(spec) {
  if (spec.metrics.length < 2) return null;
  const one = spec.metrics.map((metric) =>
    spec.series.find((series) => series.metric === metric));
  const several = new Set(spec.series.map((series) => series.run)).size > 1;
  return el("ul", { class: "key" }, one.map((series) => el("li", null,
    sample(several ? { ...series, colour: "currentColor" } : series),
    spec.stack ? series.label : series.metric)));
}

function sample(series) {
  return svg("svg", { width: 22, height: 10, "aria-hidden": "true" },
    series.stacked
      ? svg("rect", { x: 6, width: 10, height: 10, rx: 2,
        style: { fill: series.colour } })
      : svg("path", { d: "M1 5H21", class: "line",
        "stroke-dasharray": series.dash, style: { stroke: series.colour } }));
}

// A canvas wants a colour in numbers, of the scheme that holds now.
function resolved(colour) {
  const probe = document.getElementById("probe");
  probe.style.color = colour;
  return getComputedStyle(probe).color;
}

function draw(chart) {
  const { spec, view, plot } = chart;
  chart.stale = false;
  chart.drawn?.destroy();
  plot.chart = chart;  // For tests, and for whoever opens a console.
  chart.tip.hidden = true;
  const range = view.range || view.full();
  const { strokes, columns, left } = curvesOf(chart, range);
  const [ink, grid] = [resolved("var(--quiet)"), resolved("var(--grid)")];
  const axis = { stroke: ink, font: "11.5px sans-serif", ticks: { show: false },
    grid: { stroke: grid, width: 1 }, values: (_, at) => at.map(tickText) };
  chart.drawn = new uPlot({
    width: plot.clientWidth, height: HEIGHT, legend: { show: false },
    padding: [8, 12, 0, 0],
    scales: {
      x: { time: false, range: () => range },
      y: chart.log ? { distr: 3 } : spec.stack ? { range: [0, 1] } : {},
    },
    axes: [{ ...axis, grid: { show: false }, size: 30 },
      { ...axis, size: 56 }],
    series: [{}, ...strokes],
    cursor: {
      y: false, drag: { x: true, y: false, setScale: false },
      bind: {
        dblclick: () => () => view.reset(),
        mouseleave: (u, target, leave) => (event) => {
          if (!chart.touched) leave(event);
        },
      },
    },
    hooks: {
      setCursor: [(u) => point(chart, u)],
      setSelect: [({ select, posToVal }) => {
        const [from, to] = [0, select.width].map((by) =>
          posToVal(select.left + by, "x"));
        // Later, as this plot still works on the event that ends it.
        if (select.width > 5) queueMicrotask(() => view.zoom(from, to));
      }],
    },
  }, columns, plot);
  const nothing = columns[0].every((x, i) => x < range[0] || x > range[1]
    || columns.slice(1).every((ys) => typeof ys[i] !== "number"));
  chart.note.textContent = nothing
    ? (strokes.length ? "Nothing recorded here." : "No run is shown.")
    : left ? `${whole(left)} ${left === 1 ? "value" : "values"} ≤ 0 left out: `
      + "a logarithm has none." : "";
  chart.note.hidden = !chart.note.textContent;
}

// What uPlot draws: {strokes, columns}; and how many values have no logarithm.
function curvesOf(chart, range) {
  const { spec, view } = chart;
  const strokes = [];
  const tables = [];
  let left = 0;
  const put = (xs, values, look) => {
    tables.push([xs, values]);
    strokes.push({ points: { show: false }, ...look });
  };
  const lines = chart.lines();
  if (spec.stack) {
    // The whole first, and over it what is below it.
    for (const series of lines.slice().reverse()) {
      const { steps, upper } = stacked(spec).get(series);
      const fill = resolved(series.colour);
      put(along(series.run, steps, view.axis), upper,
        { fill, stroke: resolved("var(--paper)"), width: 1 });
    }
  }
  for (const series of spec.stack ? [] : lines) {
    const xs = chart.xs(series);
    const stroke = resolved(series.colour);
    const look = { stroke, width: 1.6,
      dash: series.dash ? series.dash.split(" ").map(Number) : [] };
    let { values } = series;
    if (chart.log) {
      values = values.map((v) => (v > 0 ? v : null));
      left += series.values.filter((v, i) => v !== null && v <= 0
        && xs[i] >= range[0] && xs[i] <= range[1]).length;
    }
    const weight = series.smooths ? view.weight : 0;
    if (weight) {
      put(xs, values, { ...look, width: 1, alpha: 0.28 });
      put(xs, smoothed(series, weight), { ...look, width: 2 });
    } else put(xs, values, { ...look, points: { size: 5, fill: stroke } });
  }
  return { strokes, left,
    columns: tables.length ? uPlot.join(tables) : [[]] };
}

function smoothed(series, weight) {
  if (series.weight !== weight) {
    series.average = smooth(series.values, weight);
    series.weight = weight;
  }
  return series.average;
}

// Shows what was recorded nearest to the pointer, neither smoothed nor thinned.
function point(chart, { cursor, posToVal, bbox }) {
  const { tip, plot, view } = chart;
  const lists = chart.lines().map(chart.xs).filter((xs) => xs.length);
  tip.hidden = !(cursor.left >= 0) || !lists.length;
  if (tip.hidden) return;
  const at = posToVal(cursor.left, "x");
  const x = lists.map((xs) => xs[nearest(xs, at)]).reduce((a, b) =>
    (Math.abs(b - at) < Math.abs(a - at) ? b : a));
  tip.replaceChildren(el("strong", null, view.axis === "step"
    ? `step ${whole(x)}` : `${number(x)} ${AXES[view.axis]}`),
  readingTable(chart, readings(chart, x)));
  // Beside the pointer, or below the chart where there is no room.
  const px = cursor.left + bbox.left / devicePixelRatio;
  const [width, wide] = [plot.clientWidth, tip.offsetWidth];
  const room = [px + 12, px - wide - 12].find((left) =>
    left >= 0 && left + wide <= width);
  tip.classList.toggle("under", room === undefined);
  tip.style.left = `${room ?? Math.max(0,
    Math.min(px - wide / 2, width - wide))}px`;
}

// [{series, step, value, ...}]: each curve's record nearest to x.
function readings(chart, x) {
  return chart.lines().filter((s) => s.steps.length).map((series) => {
    const xs = chart.xs(series);
    const i = nearest(xs, x);
    const weight = series.smooths ? chart.view.weight : 0;
    const shares = series.stacked ? stacked(chart.spec).get(series) : null;
    return {
      series, step: series.steps[i], value: series.values[i], off: xs[i] !== x,
      share: shares && shares.share[firstFrom(shares.steps, series.steps[i])],
      smoothed: weight ? smoothed(series, weight)[i] : null,
    };
  });
}

// A row for each run and a column for each metric; of one run, a row for each
// metric.
function readingTable(chart, found) {
  const { spec, view } = chart;
  const text = (r) => (r.share !== null && r.value !== null
    ? `${duration(r.value)} (${percent(r.share)})` : number(r.value));
  const cell = (r) => el("td", null,
    el("span", { class: "value" }, r ? text(r) : "–"),
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
  return el("table", null,
    el("thead", null, el("tr", null, el("td"),
      spec.metrics.map((metric) => el("th", { scope: "col" }, metric)))),
    el("tbody", null, runs.map((run) => el("tr", null,
      el("th", { scope: "row" }, named(run)),
      spec.metrics.map((metric) => cell(found.find((r) =>
        r.series.run === run && r.series.metric === metric)))))));
}
