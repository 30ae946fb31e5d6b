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
