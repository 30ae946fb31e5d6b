// Curves, drawn by uPlot. All charts share the axis, its zoom, smoothing, and
// the runs that are hidden.

const CHARTS = [
  ["Loss", /^(train|eval)\/loss$/],
  ["Accuracy", /^eval\/(accuracy|balanced|macro_f1)|^fewshot\//],
  ["Learning rate", /^train\/learning_rate$/],
  ["Gradient norm", /^train\/grad_norm$/],
  ["Images per second", /^(train|data)\/images_per_second$/],
  ["Model FLOP utilization (MFU)", /^train\/mfu$/],
  ["Share of time waiting for data", /^data\/wait$/],
  ["Time by kind (s)", /^goodput\//],
];
const DASHES = [[], [7, 4], [2, 4], [11, 4, 2, 4]];
const view = { axis: "step", range: null, weight: 0, hidden: new Set() };
const charts = [];

function colour(i) {
  return `var(--line-${(i % 8) + 1})`;
}

function redraw() {
  charts.forEach(draw);
}

function set(name, value) {
  view[name] = value;
  if (name === "axis") view.range = null;
  redraw();
}

// Known metrics together, each of the others alone and folded.
function curves(runs) {
  const left = new Set(runs.flatMap((run) => Object.keys(run.curves)));
  const known = CHARTS.map(([title, pattern]) => {
    const metrics = [...left].filter((name) => pattern.test(name));
    metrics.forEach((name) => left.delete(name));
    // Training's first, so that it has the first colour and the whole line.
    return [title, metrics.sort((a, b) =>
      b.startsWith("train/") - a.startsWith("train/"))];
  }).filter(([, metrics]) => metrics.length);
  if (!known.length && !left.size) return null;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const grid = (some) => el("div", { class: "charts" },
    some.map(([title, metrics]) => makeChart(title, metrics, runs)));
  return section("curves", "Curves", steering(runs), grid(known),
    left.size ? folded(`More metrics: ${left.size} charts`,
      grid([...left].sort().map((name) => [name, [name]]))) : null);
}

function steering(runs) {
  const slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01,
    value: 0, oninput: () => set("weight", Number(slider.value)) });
  const axes = ["step", "images",
    ...runs.every((run) => run.curves.hours) ? ["hours"] : []];
  return el("div", { class: "steering" },
    runs.length > 1 ? el("div", { role: "group", "aria-label": "Runs shown" },
      runs.map((run) => checkbox(named(run), true, (on) => {
        view.hidden[on ? "delete" : "add"](run);
        redraw();
      }))) : null,
    el("label", null, "Smoothing", slider),
    choice("Horizontal axis", axes.map((axis) => [axis, axis]),
      (axis) => set("axis", axis)),
    el("button", { type: "button", onclick: () => set("range", null) },
      "Reset"));
}

function makeChart(title, metrics, runs) {
  const lines = runs.flatMap((run) => metrics.flatMap((metric, i) => {
    const [steps, values] = run.curves[metric] || [];
    const own = metrics.length > 1 ? `${run.name}: ${metric}` : run.name;
    return steps ? [{ run, steps, values, dash: DASHES[i % DASHES.length],
      label: runs.length > 1 ? own : metric,
      colour: runs.length > 1 ? run.colour : colour(i),
      // An evaluation is a whole split and a schedule has no noise.
      smooths: /^(train|data)\/(?!learning_rate)/.test(metric) }] : [];
  }));
  const plot = el("div", { class: "plot", role: "img", "aria-label":
    `${title}: curves. The table below has their numbers.` });
  const chart = { lines, plot, log: false };
  charts.push(chart);
  // Also when it is first shown, or unfolded.
  new ResizeObserver(() => {
    if (plot.clientWidth !== chart.width) draw(chart);
  }).observe(plot);
  const records = el("details", { class: "records", ontoggle: () => {
    if (!records.querySelector("table")) records.append(recordTable(chart, title));
  } }, el("summary", { "aria-label": `${title}: data table` }, "Table"));
  return el("figure", { class: "chart" }, el("figcaption", null,
    el("h3", { title }, title), checkbox("Log", false, (on) => {
      chart.log = on;
      draw(chart);
    }, { "aria-label": `${title}: logarithmic scale` })), plot, records);
}

// Every record, those of a step in a row.
function recordTable({ lines }, title) {
  const rows = aligned(lines.map(({ steps, values }) =>
    steps.map((step, i) => [step, String(values[i] ?? "not finite")])), "");
  rows.sort(([a], [b]) => a - b);
  return table(`${title}: records`, ["step", ...lines.map(({ label }) => label)],
    rows.map(([step, ...values]) => [whole(step), ...values]));
}

// Where on the axis a run's steps are.
function along(run, steps) {
  if (view.axis === "step") return steps;
  if (view.axis === "images") return steps.map((step) => step * run.batch_size);
  const [known, hours] = run.curves.hours;
  let i = 0;
  return steps.map((step) => {
    while (i < known.length - 1 && known[i] < step) i++;
    return hours[i];
  });
}

// Exponential moving average, without the pull of its start at zero.
function smoothed(values) {
  let [sum, mass] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = view.weight * sum + (1 - view.weight) * value;
    mass = view.weight * mass + 1 - view.weight;
    return sum / mass;
  });
}

function zoom(u) {
  const { left, width } = u.select;
  if (width < 6) return;
  view.range = [left, left + width].map((at) => u.posToVal(at, "x"));
  queueMicrotask(redraw);  // This plot still works on the event.
}

function draw(chart) {
  const { plot } = chart;
  chart.drawn?.destroy();
  chart.width = plot.clientWidth;
  if (!chart.width) return;  // It is folded.
  // A canvas wants a colour in numbers, of the scheme that holds now.
  const resolved = (name) => {
    plot.style.color = name;
    return getComputedStyle(plot).color;
  };
  const value = (u, y, s, i) => (i === null || i === undefined ? "–"
    : typeof y === "number" ? number(y) : "not finite");
  const series = [{ label: view.axis, value }];
  const columns = [];
  for (const line of chart.lines.filter(({ run }) => !view.hidden.has(run))) {
    const xs = along(line.run, line.steps);
    const ys = chart.log ? line.values.map((y) => (y > 0 ? y : null))
      : line.values;
    const look = { value, label: line.label, stroke: resolved(line.colour),
      dash: line.dash, width: 1.6 };
    const smooth = view.weight && line.smooths;
    columns.push([xs, ys]);
    series.push(smooth ? { ...look, alpha: 0.3 } : look);
    if (!smooth) continue;
    columns.push([xs, smoothed(ys)]);
    series.push({ ...look, label: `${line.label} (smooth)` });
  }
  const axis = { stroke: resolved("var(--quiet)"), font: "11.5px sans-serif",
    grid: { stroke: resolved("var(--grid)"), width: 1 },
    ticks: { show: false } };
  chart.drawn = plot.chart = new uPlot({
    width: chart.width, height: 236, series, axes: [axis, { ...axis, size: 60 }],
    scales: { x: { time: false, ...view.range && { range: view.range } },
      y: { distr: chart.log ? 3 : 1 } },
    // Values stay when the mouse leaves, as a finger does at once.
    cursor: { y: false, drag: { setScale: false }, bind: {
      mouseleave: () => null, dblclick: () => () => set("range", null) } },
    hooks: { setSelect: [zoom] }, legend: { markers: { dash: (u, i) =>
      (series[i].dash?.length ? "dashed" : "solid") } },
  }, columns.length ? uPlot.join(columns) : [[]], plot);
}
