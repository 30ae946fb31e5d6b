// The section of charts, with what steers all of them at once.

function curvesSection(runs) {
  const view = makeView(runs);
  const specs = chartSpecs(runs);
  if (!specs.length) return { node: null, view };
  view.charts = specs.map((spec) => makeChart(spec, view));
  // A run's own chart of goodput goes with the run.
  view.listeners.push(() => {
    for (const { spec, node } of view.charts) {
      if (spec.run) node.hidden = view.hidden.has(spec.run.index);
    }
  });
  const of = (more) => view.charts.filter(({ spec }) =>
    Boolean(spec.more) === more).map(({ node }) => node);
  const others = of(true);
  const node = section("curves", "Curves", steering(runs, view),
    el("div", { class: "charts" }, of(false)), timeTable(runs),
    others.length ? el("details", { class: "folded" },
      el("summary", null, "More metrics", el("small", null,
        `${others.length} ${others.length === 1 ? "chart" : "charts"}`)),
      el("div", { class: "charts" }, others)) : null);
  return { node, view };
}

function steering(runs, view) {
  const axes = Object.entries(AXES).filter(([axis]) =>
    runs.every((run) => !run.curves.size || canDraw(run, axis)));
  const output = el("output", { for: "smoothing" }, "off");
  const slider = el("input", {
    type: "range", id: "smoothing", min: 0, max: 0.99, step: 0.01, value: 0,
    oninput: () => {
      view.weight = Number(slider.value);
      output.textContent = view.weight ? view.weight.toFixed(2) : "off";
      view.draw();
    },
  });
  const reset = button("Reset", () => view.reset(),
    { title: "Show the whole axis (or double click a chart)" });
  view.listeners.push(() => { reset.disabled = view.range === null; });
  return el("div", { class: "steering" },
    runs.length > 1 ? el("div", {
      class: "runs", role: "group", "aria-label": "Runs shown",
    }, runs.map((run) => runSwitch(run, view))) : null,
    el("label", { class: "slider", title: "Exponential moving average of what "
      + "is measured while training; the values themselves stay behind it" },
    "Smoothing", slider, output),
    axes.length > 1 ? choice("Horizontal axis", axes, view.axis, (axis) => {
      view.axis = axis;
      view.range = null;
      view.draw();
    }) : null,
    el("div", { class: "choice", role: "group", "aria-label": "Zoom" },
      button("−", () => view.zoomBy(2), { "aria-label": "Zoom out" }),
      button("+", () => view.zoomBy(0.5), { "aria-label": "Zoom in" }), reset));
}

function runSwitch(run, view) {
  return toggle(named(run), (on) => {
    if (on) view.hidden.delete(run.index);
    else view.hidden.add(run.index);
    view.draw();
  }, { "aria-pressed": "true", class: "run" });
}

// Seconds by kind, as bars and as a table.
function timeTable(runs) {
  const timed = runs.filter((run) => run.seconds.length);
  if (!timed.length) return null;
  const last = (run, kind) => {
    const curve = run.curves.get(`goodput/${kind}`);
    return curve ? curve.values[curve.values.length - 1] : null;
  };
  const total = (run) => run.seconds.reduce((sum, kind) =>
    sum + (last(run, kind) || 0), 0);
  const kinds = KINDS.filter(([kind]) => timed.some((run) =>
    run.seconds.includes(kind)));
  for (const run of timed) {
    for (const kind of run.seconds) {
      if (!kinds.some(([known]) => known === kind)) kinds.push([kind, kind]);
    }
  }
  const tint = (i) => {
    const at = KINDS.indexOf(kinds[i]);
    return colour(at < 0 ? 7 : at);
  };
  const bar = (run) => el("div", { class: "time" },
    timed.length > 1 ? el("p", { class: "whose" }, named(run)) : null,
    el("div", { class: "stack", role: "img", "aria-label":
      `${percent(last(run, "step") / total(run))} of the time for updates` },
    kinds.map(([kind, text], i) => {
      const seconds = last(run, kind) || 0;
      return seconds > 0 ? el("span", {
        title: `${text}: ${duration(seconds)}`,
        style: { flex: `${seconds} 0 0`, background: tint(i) },
      }) : null;
    })));
  return el("div", { class: "block", id: "time" },
    el("h3", null, "Where the time went"),
    timed.map(bar),
    scrolls("Seconds by kind", table(
      ["", ...timed.flatMap((run) => [timed.length > 1 ? run.name : "seconds",
        "share"])],
      [...kinds.map(([kind, text], i) => [
        [el("span", { class: "swatch", style: { background: tint(i) } }), text],
        ...timed.flatMap((run) => {
          const seconds = last(run, kind);
          return seconds === null ? ["–", "–"]
            : [number(seconds), percent(seconds / total(run))];
        })]),
      ["all", ...timed.flatMap((run) => [number(total(run)), ""])]],
      { class: "numbers" })));
}
