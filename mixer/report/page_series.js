// Curves as numbers: from records to what one pixel column needs. No drawing.

// {metric: {steps, values}} of a run's records: sorted by step, null where a
// value was not finite. Of two records of one step the later one counts.
function curves(records) {
  const found = new Map();
  for (const record of records) {
    const step = record.step;
    for (const name in record) {
      if (name === "step") continue;
      const value = record[name];
      if (value !== null && typeof value !== "number") continue;
      let curve = found.get(name);
      if (!curve) found.set(name, curve = { steps: [], values: [] });
      const last = curve.steps.length - 1;
      if (last >= 0 && curve.steps[last] === step) curve.values[last] = value;
      else {
        if (last >= 0 && curve.steps[last] > step) curve.unsorted = true;
        curve.steps.push(step);
        curve.values.push(value);
      }
    }
  }
  for (const curve of found.values()) if (curve.unsorted) sortCurve(curve);
  return found;
}

function sortCurve(curve) {
  const latest = new Map();
  curve.steps.forEach((step, i) => latest.set(step, curve.values[i]));
  curve.steps = [...latest.keys()].sort((a, b) => a - b);
  curve.values = curve.steps.map((step) => latest.get(step));
}

// First i with sorted[i] >= x; sorted.length if there is none.
function firstFrom(sorted, x) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

// A curve's value at a step, or null; quick where it is the i-th one.
function valueAt({ steps, values }, step, i) {
  const at = steps[i] === step ? i : firstFrom(steps, step);
  return steps[at] === step ? values[at] : null;
}

function nearest(sorted, x) {
  const i = firstFrom(sorted, x);
  if (i === 0) return 0;
  if (i === sorted.length) return i - 1;
  return x - sorted[i - 1] <= sorted[i] - x ? i - 1 : i;
}

function union(lists) {
  if (lists.length === 1) return lists[0];
  const all = new Set();
  for (const list of lists) for (const x of list) all.add(x);
  return Float64Array.from(all).sort();
}

// Exponential moving average, without the pull of its start at zero; gaps stay
// gaps.
function smooth(values, weight) {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + 1 - weight;
    return sum / mass;
  });
}

// An SVG path through the points, in pixels. Of the points of one pixel column
// it keeps the first, lowest, highest and last one, in their order: nothing
// that could be seen is lost. A gap is where there is no value, or none that
// has a logarithm.
function path(xs, ys, from, to, { x, y, log }) {
  const out = [];
  const gap = (value) => value === null || (log && value <= 0);
  let open = false;
  let i = from;
  const put = (px, py) => {
    // A path of no length with round caps: a lone point is a dot.
    out.push(open ? "L" : "M", tenth(px), " ", tenth(py));
    if (!open) out.push("h0");
    open = true;
  };
  while (i < to) {
    if (gap(ys[i])) {
      open = false;
      i += 1;
      continue;
    }
    const column = Math.floor(x(xs[i]));
    let low = i;
    let high = i;
    let last = i;
    for (let j = i + 1; j < to && Math.floor(x(xs[j])) === column; j += 1) {
      if (gap(ys[j])) break;
      if (ys[j] < ys[low]) low = j;
      if (ys[j] > ys[high]) high = j;
      last = j;
    }
    const kept = [i, Math.min(low, high), Math.max(low, high), last];
    kept.forEach((k, at) => {
      if (at === 0 || k !== kept[at - 1]) put(x(xs[k]), y(ys[k]));
    });
    i = last + 1;
  }
  return out.join("");
}

function tenth(pixels) {
  return Math.round(pixels * 10) / 10;
}

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12)
      + step * 1e-9; i += 1) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

function logTicks(low, high) {
  const found = [];
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const few = last - first > 2;
  const every = Math.ceil((last - first) / 8);
  for (let power = first; power <= last; power += few ? every : 1) {
    for (const m of few ? [1] : [1, 2, 5]) {
      const value = Number(`${m}e${power}`);
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found.length > 1 ? found : ticks(low, high, 4);
}

// Short, for an axis.
function tickText(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-4) return value.toExponential().replace("e-", "e−");
  const units = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  for (const [unit, letter] of units) {
    if (size >= unit && (unit > 1e3 || size >= 1e4)) {
      return `${Number((value / unit).toPrecision(5))}${letter}`;
    }
  }
  return String(Number(value.toPrecision(7)));
}
