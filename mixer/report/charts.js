// Curves, drawn by uPlot. All charts share what is in `view`: the axis, its
// zoom, smoothing, and the runs that are hidden.

const CHARTS = [
  ["Loss", /^(train|eval)\/loss$/],
  ["Accuracy", /^(train|eval)\/accuracy|^fewshot\//],
  ["Learning rate", /^train\/learning_rate$/],
  ["Gradient norm", /^train\/grad_norm$/],
  ["Images per second", /^(train|data)\/images_per_second$/],
  ["Model FLOP utilization (MFU)", /^train\/mfu$/],
  ["Share of time waiting for data", /^data\/wait$/],
  ["Time by kind (s)", /^goodput\//],
];
const KINDS = ["train", "eval", "data", "fewshot"];
const DASHES = [[], [7, 4], [2, 4], [11, 4, 2, 4]];
const HEIGHT = 236;
const ROWS = 500;  // Of a table at a time.

function colour(i) {
  return `var(--line-${(i % 8) + 1})`;
}

// [{title, lines}]: known metrics together, each of the others alone.
function chartSpecs(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  const known = CHARTS.map(([title, pattern]) =>
    [title, names.filter((name) => pattern.test(name))]);
  const rest = names.filter((name) => !known.some(([, metrics]) =>
    metrics.includes(name))).sort().map((name) => [name, [name]]);
  // Training's first, so that it has the first colour and the whole line.
  const place = (name) => KINDS.indexOf(name.split("/")[0]);
  return [...known, ...rest].filter(([, metrics]) => metrics.length)
    .map(([title, metrics]) => ({ title, lines: runs.flatMap((run) =>
      metrics.sort((a, b) => place(a) - place(b)).flatMap((metric, i) => {
        const [steps, values] = run.curves[metric] || [];
        return steps ? [{ run, metric, steps, values,
          label: runs.length === 1 ? metric
            : metrics.length > 1 ? `${run.name}: ${metric}` : run.name,
          colour: runs.length === 1 ? colour(i) : run.colour,
          dash: DASHES[i % DASHES.length],
          // An evaluation is a whole split and a schedule has no noise.
          smooths: /^(train|data)\//.test(metric)
            && metric !== "train/learning_rate" }] : [];
      })) }));
}

// Where on the axis steps are.
function along(run, steps, axis) {
  if (axis === "step") return steps;
  if (axis === "images") return steps.map((step) => step * run.batch_size);
  const [known, hours] = run.curves.hours;
  let i = 0;
  return steps.map((step) => {
    while (i < known.length - 1 && known[i] < step) i++;
    if (i === 0 || known[i] <= step) return hours[i];
    const part = (step - known[i - 1]) / (known[i] - known[i - 1]);
    return hours[i - 1] + part * (hours[i] - hours[i - 1]);
  });
}

// Exponential moving average, without the pull of its start at zero; gaps stay
// gaps.
function smoothed(values, weight) {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + 1 - weight;
    return sum / mass;
  });
}

function curvesSection(runs) {
  const view = { axis: "step", range: null, weight: 0, hidden: new Set() };
  const specs = chartSpecs(runs);
  if (!specs.length) return { node: null, draw() {} };
  const charts = specs.map((spec) => makeChart(spec, view));
  const shown = (line) => !view.hidden.has(line.run);
  view.lines = (spec) => spec.lines.filter(shown);
  // Of all curves of the runs shown, so that charts line up.
  view.full = () => {
    let [low, high] = [Infinity, -Infinity];
    for (const line of specs.flatMap(view.lines)) {
      const ends = [line.steps[0], line.steps[line.steps.length - 1]];
      const [first, last] = along(line.run, ends, view.axis);
      [low, high] = [Math.min(low, first), Math.max(high, last)];
    }
    return low < high ? [low, high] : [low - 0.5 || 0, low + 0.5 || 1];
  };
  view.draw = () => charts.forEach((chart) => chart.draw());
  view.zoom = (from, to) => {
    const [low, high] = view.full();
    const [start, end] = [Math.max(low, from), Math.min(high, to)];
    if (start >= end) return;
    view.range = start <= low && end >= high ? null : [start, end];
    view.draw();
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", view.draw);
  document.addEventListener("colours", view.draw);
  addEventListener("resize", view.draw);
  const grid = (some) => el("div", { class: "charts" },
    some.map((chart) => chart.node));
  const known = charts.filter(({ title }) =>
    CHARTS.slice(0, -1).some(([name]) => name === title));
  const others = charts.filter((chart) => !known.includes(chart));
  const more = others.length ? folded("More metrics",
    `${others.length} charts`, grid(others)) : null;
  more?.addEventListener("toggle", view.draw);
  return { draw: view.draw, node: section("curves", "Curves",
    steering(runs, view), grid(known), more) };
}

function steering(runs, view) {
  const output = el("output", null, "off");
  const slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01,
    value: 0, oninput: () => {
      view.weight = Number(slider.value);
      output.textContent = view.weight ? view.weight.toFixed(2) : "off";
      view.draw();
    } });
  const axes = ["step", ...runs.every((run) => run.batch_size) ? ["images"] : [],
    ...runs.every((run) => run.curves.hours) ? ["hours"] : []];
  const scale = (by) => {
    const [from, to] = view.range || view.full();
    const [middle, half] = [(from + to) / 2, by * (to - from) / 2];
    view.zoom(middle - half, middle + half);
  };
  return el("div", { class: "steering" },
    runs.length > 1 ? el("div", { class: "runs", role: "group",
      "aria-label": "Runs shown" }, runs.map((run) =>
      checkbox(named(run), true, (on) => {
        view.hidden[on ? "delete" : "add"](run);
        view.draw();
      }))) : null,
    el("label", null, "Smoothing", slider, output),
    choice("Horizontal axis", axes.map((axis) => [axis, axis]), (axis) => {
      view.axis = axis;
      view.range = null;
      view.draw();
    }),
    button("−", () => scale(2), { "aria-label": "Zoom out" }),
    button("+", () => scale(0.5), { "aria-label": "Zoom in" }),
    button("Reset", () => view.zoom(-Infinity, Infinity)));
}

function makeChart(spec, view) {
  const plot = el("div", { class: "plot", role: "img", "aria-label":
    `${spec.title}: curves. The table beside it has their numbers.` });
  const records = el("div", { hidden: "" });
  const chart = { ...spec, plot, log: false };
  chart.draw = () => {
    if (!plot.clientWidth) return;  // It is folded.
    chart.drawn?.destroy();
    chart.drawn = drawn(chart, view);
    plot.chart = chart;  // For tests, and for whoever opens a console.
    if (!records.hidden) records.replaceChildren(...recordTable(spec, view));
  };
  const named = (text) => ({ "aria-label": `${spec.title}: ${text}` });
  chart.node = el("figure", { class: "chart" },
    el("figcaption", null, el("h3", { title: spec.title }, spec.title),
      el("div", { class: "actions" }, checkbox("Log", false, (on) => {
        chart.log = on;
        chart.draw();
      }, { ...named("logarithmic scale"), title: "Leaves out what is ≤ 0" }),
      checkbox("Table", false, (on) => {
        records.hidden = !on;
        chart.draw();
      }, named("data table")))), plot, records);
  // A finger makes a mouse's events or none, and leaves at once.
  plot.addEventListener("pointerdown", (event) => {
    chart.touched = event.pointerType === "touch";
    if (!chart.touched) return;
    const { left, top } = chart.drawn.over.getBoundingClientRect();
    chart.drawn.setCursor({ left: event.clientX - left,
      top: event.clientY - top });
  });
  return chart;
}

// A canvas wants a colour in numbers, of the scheme that holds now.
function resolved(name) {
  const probe = document.getElementById("probe");
  probe.style.color = name;
  return getComputedStyle(probe).color;
}

function drawn(chart, view) {
  const { plot } = chart;
  const series = [{ label: view.axis,
    value: (u, x) => (x === null ? "–" : number(x)) }];
  const columns = [];
  const none = { show: false };
  const put = (xs, values, look) => {
    columns.push([xs, values]);
    series.push({ value: reading, ...look });
  };
  for (const line of view.lines(chart)) {
    const xs = along(line.run, line.steps, view.axis);
    const values = chart.log
      ? line.values.map((v) => (v > 0 ? v : null)) : line.values;
    const stroke = resolved(line.colour);
    const look = { label: line.label, stroke, dash: line.dash, width: 1.6 };
    if (view.weight && line.smooths) {
      put(xs, values, { ...look, width: 1, alpha: 0.3, points: none });
      put(xs, smoothed(values, view.weight),
        { ...look, label: `${line.label} (smooth)`, width: 2, points: none });
    } else put(xs, values, { ...look, points: { size: 5, fill: stroke } });
  }
  const axis = { stroke: resolved("var(--quiet)"), font: "11.5px sans-serif",
    ticks: { show: false },
    grid: { stroke: resolved("var(--grid)"), width: 1 } };
  const short = Intl.NumberFormat("en-US",
    { notation: "compact", maximumSignificantDigits: 5 });
  return new uPlot({
    width: plot.clientWidth, height: HEIGHT, padding: [8, 12, 0, 0],
    scales: { x: { time: false, range: () => view.range || view.full() },
      y: chart.log ? { distr: 3 } : {} },
    axes: [{ ...axis, grid: { show: false }, size: 30,
      values: (u, at) => at.map((x) => short.format(x)) },
    { ...axis, size: 56, values: (u, at) => at.map((y) =>
      (y !== null && Math.abs(y) >= 1e4 ? short.format(y) : y)) }],
    series,
    legend: { markers: { dash: (u, i) =>
      (series[i].dash?.length ? "dashed" : "solid") } },
    cursor: { y: false, drag: { setScale: false }, dataIdx: nearestRecord,
      bind: { dblclick: () => () => view.zoom(-Infinity, Infinity),
        mouseleave: (u, target, leave) => (event) => {
          if (!chart.touched) leave(event);
        } } },
    hooks: { setSelect: [({ select, posToVal }) => {
      const [from, to] = [0, select.width].map((by) =>
        posToVal(select.left + by, "x"));
      // Later, as this plot still works on the event that ends it.
      if (select.width > 5) queueMicrotask(() => view.zoom(from, to));
    }] },
  }, columns.length ? uPlot.join(columns) : [[]], plot);
}

// The place of a series' record that is nearest to the pointer.
function nearestRecord(u, s, at) {
  const [xs, values] = [u.data[0], u.data[s]];
  let [left, right] = [at, at];
  while (left > 0 && values[left] === undefined) left--;
  while (right < xs.length - 1 && values[right] === undefined) right++;
  if (values[left] === undefined) return right;
  if (values[right] === undefined) return left;
  return xs[at] - xs[left] <= xs[right] - xs[at] ? left : right;
}

// A record as the legend says it; also where, if not at the pointer.
function reading(u, value, s, i) {
  if (i === null || i === undefined) return "–";
  const x = u.data[0][i];
  const text = typeof value === "number" ? number(value) : "not finite";
  return x === u.data[0][u.cursor.idx] ? text : `${text} at ${number(x)}`;
}

// The records behind a chart, in full.
function recordTable(spec, view) {
  const lines = view.lines(spec);
  const known = lines.map(({ steps, values }) =>
    new Map(steps.map((step, i) => [step, values[i]])));
  const steps = [...new Set(lines.flatMap((line) => line.steps))]
    .sort((a, b) => a - b);
  const grid = table(["step", ...lines.map((line) => line.label)], [],
    { class: "numbers" });
  const more = button("", () => {
    const body = grid.tBodies[0];
    body.append(...steps.slice(body.rows.length, body.rows.length + ROWS)
      .map((step) => tableRow(whole(step), ...known.map((values) =>
        (values.has(step) ? String(values.get(step) ?? "not finite") : "")))));
    more.hidden = body.rows.length === steps.length;
    more.textContent = `More rows (${whole(body.rows.length)} of `
      + `${whole(steps.length)})`;
  });
  more.click();
  return [scrolls(`${spec.title}: records`, grid), more];
}
