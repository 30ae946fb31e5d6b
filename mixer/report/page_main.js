// The page as a whole.

function main() {
  const scheme = colourScheme();
  if (scheme) setColourScheme(scheme);
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = (data.runs || []).map(readRun);
  const { node, view } = curvesSection(runs);
  const parts = [
    runs.length > 1 ? differences(runs) : null,
    node,
    panels("predictions", "Predictions", runs,
      runs.filter((run) => run.predictions), predictionsPanel),
    panels("weights", "Weights", runs, runs.filter((run) => run.weights
      && (run.weights.stem || (run.weights.tokens || []).length)),
    weightsPanel),
    settings(runs),
  ].filter(Boolean);
  document.getElementById("report").append(
    overview(runs, data.version),
    el("nav", { "aria-label": "Parts" }, parts.map((part) => el("a",
      { href: `#${part.id}` }, part.querySelector("h2").textContent))),
    ...parts);
  if (node) view.draw();
  printing(view);
}

// A section with one run's part at a time; a part is made when first shown.
function panels(id, title, runs, having, make) {
  if (!having.length) return null;
  const several = runs.length > 1;
  const boxes = having.map(() => el("div", { class: "panel", hidden: true }));
  const need = (i) => {
    if (boxes[i].childNodes.length) return;
    fill(boxes[i], null, [
      several ? el("p", { class: "whose" }, named(having[i])) : null,
      make(having[i])]);
  };
  const show = (chosen) => boxes.forEach((box, i) => {
    box.hidden = i !== chosen;
    if (!box.hidden) need(i);
  });
  show(0);
  addEventListener("beforeprint", () => boxes.forEach((_, i) => need(i)));
  return section(id, title, several ? choice("Run",
    having.map((run, i) => [i, run.name]), 0, show) : null, boxes);
}

// Paper cannot be unfolded.
function printing(view) {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((node) => { node.open = true; });
    document.documentElement.style.colorScheme = "light";
    view.charts.forEach((chart) => {
      chart.stale = true;
      chart.ready();
    });
  });
  addEventListener("afterprint", () => {
    opened.forEach((node) => { node.open = false; });
    document.documentElement.style.colorScheme = colourScheme();
    view.draw();
  });
  // A canvas keeps the colours that it was drawn with.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", view.draw);
  document.addEventListener("colours", view.draw);
}
