// Which metrics share a chart, and what their curves are drawn over.

const CHARTS = [
  ["loss", "Loss", /^(train|eval)\/loss$/],
  ["accuracy", "Accuracy", /^(train|eval)\/accuracy|^fewshot\//],
  ["learning-rate", "Learning rate", /^train\/learning_rate$/],
  ["grad-norm", "Gradient norm", /^train\/grad_norm$/],
  ["throughput", "Images per second", /^(train|data)\/images_per_second$/],
  ["mfu", "Model FLOP utilization (MFU)", /^train\/mfu$/],
  ["wait", "Share of time waiting for data", /^data\/wait$/],
];

// From the bottom of the stack to its top, with what people call them.
const KINDS = [
  ["step", "updates"],
  ["data", "waiting for data"],
  ["evaluation", "evaluation"],
  ["saving", "saving"],
  ["compile", "compilation"],
  ["start", "start"],
  ["lost", "lost to restarts"],
];

const AXES = { step: "step", images: "images", hours: "hours" };

function colour(i) {
  return `var(--line-${(i % 8) + 1})`;
}

// A run with its curves; what the page works with.
function readRun(run, index) {
  const found = curves(run.metrics || []);
  const settings = run.config && (run.config.config || run.config);
  const self = {
    ...run, index, curves: found, metrics: null, colour: colour(index),
    settings: settings || {},
  };
  self.seconds = KINDS.map(([kind]) => kind).concat(
    [...found.keys()].filter((m) => m.startsWith("goodput/"))
      .map((m) => m.slice(8)).filter((k) => !KINDS.some(([x]) => x === k)))
    .filter((kind) => found.has(`goodput/${kind}`));
  return self;
}

// Seconds spent when each step was recorded.
function timeSpent(run) {
  if (!run.spent) {
    const parts = run.seconds.map((kind) => run.curves.get(`goodput/${kind}`));
    const { steps } = parts[0];
    run.spent = { steps, totals: steps.map((step, i) => parts.reduce(
      (sum, part) => sum + (valueAt(part, step, i) || 0), 0)) };
  }
  return run.spent;
}

function canDraw(run, axis) {
  if (axis === "images") return typeof run.settings.batch_size === "number";
  if (axis === "hours") return run.seconds.length > 0;
  return true;
}

// Where on the axis a run's steps lie.
function along(run, steps, axis) {
  if (axis === "images") return steps.map((s) => s * run.settings.batch_size);
  if (axis === "step") return steps;
  const { steps: known, totals } = timeSpent(run);
  return steps.map((step) => {
    const i = firstFrom(known, step);
    if (i === known.length) return totals[i - 1] / 3600;
    if (known[i] === step || i === 0) return totals[i] / 3600;
    const part = (step - known[i - 1]) / (known[i] - known[i - 1]);
    return (totals[i - 1] + part * (totals[i] - totals[i - 1])) / 3600;
  });
}

// The charts to draw: {id, title, metrics, series, stack, more}.
function chartSpecs(runs) {
  const names = [...new Set(runs.flatMap((run) => [...run.curves.keys()]))];
  const rest = new Set(names.filter((name) => !name.startsWith("goodput/")));
  const specs = [];
  for (const [id, title, pattern] of CHARTS) {
    const metrics = names.filter((name) => pattern.test(name));
    metrics.forEach((name) => rest.delete(name));
    if (metrics.length) specs.push({ id, title, metrics });
  }
  // Their own kind first, so that a chart's first colour and whole line are
  // training's.
  for (const spec of specs) {
    const order = ["train", "eval", "data", "fewshot"];
    const place = (name) => order.indexOf(name.split("/")[0]);
    spec.metrics.sort((a, b) => place(a) - place(b));
    spec.series = lines(runs, spec.metrics);
  }
  for (const run of runs) {
    if (run.seconds.length) specs.push(goodputSpec(run, runs.length > 1));
  }
  for (const name of [...rest].sort()) {
    specs.push({
      id: `more-${name}`, title: name, metrics: [name], more: true,
      series: lines(runs, [name]),
    });
  }
  return specs;
}

const DASHES = ["", "7 4", "2 4", "11 4 2 4"];

function lines(runs, metrics) {
  return runs.flatMap((run) => metrics.flatMap((metric, at) => {
    const curve = run.curves.get(metric);
    if (!curve) return [];
    const several = metrics.length > 1;
    return [{
      run, metric, steps: curve.steps, values: curve.values,
      label: runs.length === 1 ? metric
        : several ? `${run.name} · ${metric}` : run.name,
      colour: runs.length === 1 ? colour(at) : run.colour,
      dash: DASHES[at % DASHES.length],
      // An evaluation is a whole split and a schedule has no noise.
      smooths: /^(train|data)\//.test(metric)
        && metric !== "train/learning_rate",
    }];
  }));
}

function goodputSpec(run, several) {
  const series = run.seconds.map((kind) => {
    const at = KINDS.findIndex(([name]) => name === kind);
    const curve = run.curves.get(`goodput/${kind}`);
    return {
      run, metric: `goodput/${kind}`, label: at < 0 ? kind : KINDS[at][1],
      steps: curve.steps, values: curve.values, colour: colour(at < 0 ? 7 : at),
      dash: "", stacked: true,
    };
  });
  return {
    id: `goodput-${run.index}`, stack: true, run, series,
    title: several ? `Goodput: ${run.name}` : "Goodput",
    metrics: series.map((s) => s.metric),
  };
}

// {steps, upper, share} of each series: its share of the time spent so far,
// and that on top of those below it; made when first drawn.
function stacked(spec) {
  if (spec.areas) return spec.areas;
  const { steps, totals } = timeSpent(spec.run);
  let lower = steps.map(() => 0);
  spec.areas = new Map();
  for (const series of spec.series) {
    const share = steps.map((step, i) => (totals[i] > 0
      ? (valueAt(series, step, i) || 0) / totals[i] : 0));
    lower = lower.map((below, i) => below + share[i]);
    spec.areas.set(series, { steps, upper: lower, share });
  }
  return spec.areas;
}
