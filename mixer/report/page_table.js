// The records behind a chart, in full, a hundred at a time.

const ROWS = 100;

function dataTable(chart) {
  const node = el("div", { class: "data", hidden: true });
  let first = 0;
  const render = () => {
    const drawn = chart.lines();
    const steps = drawn.length ? union(drawn.map((s) => s.steps)) : [];
    first = Math.max(0, Math.min(first, steps.length - 1));
    first -= first % ROWS;
    const rows = Array.from(steps.slice(first, first + ROWS));
    const cell = (series, step) => {
      const i = firstFrom(series.steps, step);
      if (series.steps[i] !== step) return "";
      return series.values[i] === null
        ? "not finite" : String(series.values[i]);
    };
    const turn = (label, to) => button(label, () => {
      first = to;
      render();
      node.querySelector(`[aria-label="${label} rows"]:not(:disabled)`)
        ?.focus();
    }, {
      "aria-label": `${label} rows`,
      disabled: to < 0 || to >= steps.length || to === first,
    });
    const last = Math.floor(Math.max(0, steps.length - 1) / ROWS) * ROWS;
    node.replaceChildren(
      scrolls(`${chart.spec.title}: records`, table(
        ["step", ...drawn.map((s) => (chart.spec.stack
          ? `${s.label} (s)` : s.label))],
        rows.map((step) => [whole(step), ...drawn.map((s) => cell(s, step))]),
        { class: "numbers" })),
      el("p", { class: "pager" },
        turn("First", 0), turn("Previous", first - ROWS),
        el("span", null, steps.length
          ? `${whole(first + 1)}–${whole(first + rows.length)} of `
            + whole(steps.length) : "nothing recorded"),
        turn("Next", first + ROWS), turn("Last", last)));
  };
  chart.view.listeners.push(() => { if (!node.hidden) render(); });
  return {
    node,
    show(on) {
      node.hidden = !on;
      if (on) render();
    },
  };
}
