// One chart: its frame, its lines and its axes. What pointer and keys do to it
// is in page_cursor.js.

const MARGIN = { left: 54, right: 14, top: 10, bottom: 26 };
const HEIGHT = 236;

// What all charts share: the axis, its zoom, smoothing, the runs shown.
function makeView(runs) {
  const view = {
    runs, axis: "step", range: null, weight: 0, hidden: new Set(), charts: [],
    shown: (series) => !view.hidden.has(series.run.index),
    // Of all curves of the runs shown, so that charts line up.
    full() {
      let low = Infinity;
      let high = -Infinity;
      for (const chart of view.charts) {
        for (const s of chart.spec.series.filter(view.shown)) {
          const xs = chart.xs(s);
          low = Math.min(low, xs[0]);
          high = Math.max(high, xs[xs.length - 1]);
        }
      }
      if (!(low <= high)) return [0, 1];
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
      const kept = at === undefined || at === null ? (from + to) / 2 : at;
      view.zoom(kept - (kept - from) * factor, kept + (to - kept) * factor);
    },
    reset() {
      view.range = null;
      view.draw();
    },
    draw() {
      // Those near the window first.
      const near = view.charts.filter((chart) => chart.near);
      for (const chart of view.charts) chart.age();
      // All widths before the first change: else each would cost a layout.
      for (const chart of near) chart.measure();
      for (const chart of near) chart.draw();
      for (const listen of view.listeners) listen();
      clearTimeout(view.timer);
      view.timer = setTimeout(view.drawNext);
    },
    // The others one by one, so that the page answers in between.
    drawNext() {
      const next = view.charts.find((chart) =>
        chart.stale && chart.plot.clientWidth);
      if (!next) return;
      next.ready();
      view.timer = setTimeout(view.drawNext);
    },
    timer: 0,
    listeners: [],
  };
  return view;
}

function makeChart(spec, view) {
  const svgNode = svg("svg", { "aria-hidden": "true", focusable: "false" });
  const clip = `clip-${spec.id}`;
  const tip = el("div", { class: "tip", hidden: true });
  const plot = el("div", {
    class: "plot", tabindex: "0", role: "application",
    "aria-roledescription": "chart", "aria-label":
      `${spec.title}. Left and right move the cursor, shift by ten, Home and `
      + "End to the ends; plus, minus and 0 zoom, L logarithmic.",
  }, svgNode, tip);
  const note = el("p", { class: "note", hidden: true });
  const chart = {
    spec, view, plot, tip, svg: svgNode, log: false, cursor: null, width: 480,
    near: false, stale: true,
    known: new Map(),
    xs(series) {
      const key = `${view.axis}/${series.run.index}/${series.metric}`;
      if (!chart.known.has(key)) {
        chart.known.set(key, along(series.run, series.steps, view.axis));
      }
      return chart.known.get(key);
    },
    lines: () => spec.series.filter(view.shown),
    measure() { chart.width = plot.clientWidth || chart.width || 480; },
    draw() {
      chart.stale = false;
      plot.removeAttribute("aria-busy");
      draw(chart, clip, note);
    },
    // What it shows is no longer what it should.
    age() {
      chart.stale = true;
      plot.setAttribute("aria-busy", "true");
    },
    ready() {
      if (!chart.stale) return;
      chart.measure();
      chart.draw();
    },
  };
  const grid = dataTable(chart);
  chart.logButton = spec.stack ? null : toggle("Log", (on) => {
    chart.log = on;
    chart.draw();
  }, { "aria-label": `${spec.title}: logarithmic scale` });
  chart.node = el("figure", { class: "chart", id: `chart-${spec.id}` },
    el("figcaption", null,
      el("h3", { title: spec.title }, spec.title),
      el("div", { class: "actions" }, chart.logButton,
        toggle("Table", (on) => grid.show(on),
          { "aria-label": `${spec.title}: data table` }))),
    key(spec), plot, note, grid.node);
  listen(chart);
  new ResizeObserver(() => {
    if (plot.clientWidth === chart.width) return;
    chart.age();
    if (chart.near) chart.ready();
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
  const runs = new Set(spec.series.map((series) => series.run)).size;
  return el("ul", { class: "key" }, one.map((series) => el("li", null,
    sample(runs > 1 ? { ...series, colour: "currentColor" } : series),
    spec.stack ? series.label : series.metric)));
}

function sample(series) {
  return svg("svg", { width: 22, height: 10, "aria-hidden": "true" },
    series.stacked
      ? svg("rect", { x: 6, width: 10, height: 10, rx: 2, class: "filled",
        style: { fill: series.colour } })
      : svg("path", { d: "M1 5H21", class: "line",
        "stroke-dasharray": series.dash, style: { stroke: series.colour } }));
}

function draw(chart, clip, note) {
  const { view, spec } = chart;
  const { width } = chart;
  const [x0, x1] = view.range || view.full();
  const right = width - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  chart.x = (v) => MARGIN.left + (v - x0) / (x1 - x0) * (right - MARGIN.left);
  chart.back = (px) => x0 + (px - MARGIN.left) / (right - MARGIN.left)
    * (x1 - x0);
  chart.domain = [x0, x1];
  const drawn = chart.lines().map((series) => {
    const xs = chart.xs(series);
    const from = firstFrom(xs, x0);
    let to = firstFrom(xs, x1);
    if (xs[to] === x1) to += 1;
    return { series, xs, from, to };
  });
  const { y, marks, left } = scale(chart, drawn, bottom);
  chart.y = y;
  chart.note = left ? `${whole(left)} ${left === 1 ? "value" : "values"} ≤ 0 `
    + "left out: a logarithm has none." : "";
  note.hidden = !chart.note;
  note.textContent = chart.note;
  chart.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const across = ticks(x0, x1, Math.max(2, Math.floor(width / 90)));
  chart.layer = svg("g");
  chart.svg.replaceChildren(
    svg("clipPath", { id: clip }, svg("rect", {
      x: MARGIN.left - 3, y: 0, width: right - MARGIN.left + 6,
      height: bottom + 3,
    })),
    svg("g", { class: "axes" },
      marks.map((v) => [
        svg("line", { x1: MARGIN.left, x2: right, y1: y(v), y2: y(v) }),
        svg("text", { x: MARGIN.left - 8, y: y(v) + 4, "text-anchor": "end" },
          tickText(v))]),
      across.map((v) => svg("text", {
        x: Math.min(chart.x(v), width - 4), y: HEIGHT - 7,
        "text-anchor": chart.x(v) > width - 30 ? "end" : "middle",
      }, tickText(v)))),
    svg("g", { "clip-path": `url(#${clip})` },
      drawn.map((d) => (spec.stack ? area(chart, d) : strokes(chart, d)))),
    ...(drawn.every((d) => d.from === d.to) ? [svg("text", {
      x: width / 2, y: HEIGHT / 2, "text-anchor": "middle", class: "nothing",
    }, drawn.length ? "Nothing recorded here" : "No run is shown")] : []),
    chart.layer);
  showCursor(chart);
}

// The vertical scale: what is in sight, with a little air.
function scale(chart, drawn, bottom) {
  let low = Infinity;
  let high = -Infinity;
  let left = 0;
  if (chart.spec.stack) [low, high] = [0, 1];
  else {
    for (const { series, from, to } of drawn) {
      for (let i = from; i < to; i += 1) {
        const value = series.values[i];
        if (value === null) continue;
        if (chart.log && value <= 0) left += 1;
        else {
          if (value < low) low = value;
          if (value > high) high = value;
        }
      }
    }
  }
  if (!(low <= high)) [low, high] = [chart.log ? 0.1 : 0, 1];
  const place = (a, b, f) => (v) =>
    bottom - (f(v) - a) / (b - a) * (bottom - MARGIN.top);
  if (chart.log) {
    const air = Math.max(Math.log10(high / low) * 0.04, 0.02);
    const [a, b] = [Math.log10(low) - air, Math.log10(high) + air];
    const log = place(a, b, Math.log10);
    return {
      y: (v) => (v > 0 ? log(v) : null), left,
      marks: logTicks(Math.pow(10, a), Math.pow(10, b)),
    };
  }
  const flat = high === low;
  const air = chart.spec.stack ? 0
    : flat ? Math.abs(high) * 0.1 || 1 : (high - low) * 0.05;
  const a = low >= 0 && low - air < 0 ? 0 : low - air;
  const b = high + air;
  return { y: place(a, b, (v) => v), marks: ticks(a, b, 6), left };
}

function strokes(chart, { series, xs, from, to }) {
  const start = Math.max(0, from - 1);
  const end = Math.min(xs.length, to + 1);
  const stroke = (values, name, attributes) => svg("path", {
    d: path(xs, values, start, end, chart), class: name,
    "stroke-dasharray": series.dash, style: { stroke: series.colour },
    ...attributes,
  });
  const weight = series.smooths ? chart.view.weight : 0;
  const out = [];
  if (weight) {
    if (series.weight !== weight) {
      series.smoothed = smooth(series.values, weight);
      series.weight = weight;
    }
    out.push(stroke(series.values, "line raw"),
      stroke(series.smoothed, "line smooth"));
  } else out.push(stroke(series.values, "line"));
  if (!weight && to - from <= 40) {
    let dots = "";
    for (let i = from; i < to; i += 1) {
      const at = series.values[i] === null ? null : chart.y(series.values[i]);
      if (at !== null) {
        dots += `M${tenth(chart.x(xs[i]))} ${tenth(at)}h0`;
      }
    }
    out.push(svg("path", {
      d: dots, class: "dots", style: { stroke: series.colour },
    }));
  }
  return out;
}

function area(chart, { series }) {
  const { steps, lower, upper } = stacked(chart.spec).get(series);
  const xs = along(series.run, steps, chart.view.axis);
  // Shares change slowly: one point a pixel column will do.
  const kept = [];
  const right = chart.width - MARGIN.right + 1;
  for (let px = MARGIN.left - 1; px <= right; px += 1) {
    const i = Math.min(firstFrom(xs, chart.back(px)), xs.length - 1);
    if (i !== kept[kept.length - 1]) kept.push(i);
  }
  const point = (i, values) =>
    `${tenth(chart.x(xs[i]))} ${tenth(chart.y(values[i]))}`;
  return svg("path", {
    class: "area", style: { fill: series.colour },
    d: `M${kept.map((i) => point(i, upper)).join("L")}L`
      + `${kept.reverse().map((i) => point(i, lower)).join("L")}Z`,
  });
}
