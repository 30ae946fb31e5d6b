// The head of the page: names, final numbers, facts, what is missing.

const FINALS = [
  ["eval/accuracy", "Accuracy", percent2, Math.max],
  ["eval/accuracy_top5", "Top-5 accuracy", percent2, Math.max],
  ["eval/loss", "Evaluation loss", number4, Math.min],
  ["train/loss", "Training loss", number4, null],
  ["train/images_per_second", "Images per second", number4, null],
  ["train/mfu", "MFU", percent2, null],
];

function percent2(value) {
  return percent(value, 2);
}

function number4(value) {
  return value === null ? number(value) : number(Number(value.toPrecision(4)));
}

// {text, aside} of a run's last value of a metric; null without one.
function final(run, [metric, , text, best]) {
  const curve = run.curves.get(metric);
  if (!curve || !curve.steps.length) return null;
  const last = curve.values.length - 1;
  const known = curve.values.filter((v) => v !== null);
  const top = best && known.length ? known.reduce((a, b) => best(a, b)) : null;
  let aside = `at step ${whole(curve.steps[last])}`;
  if (top !== null && top !== curve.values[last]) {
    const at = curve.steps[curve.values.indexOf(top)];
    aside += `; best ${text(top)} at ${whole(at)}`;
  }
  const value = curve.values[last];
  return { text: value === null ? "not finite" : text(value), aside };
}

function overview(runs, version) {
  const shown = FINALS.filter((f) => runs.some((run) => final(run, f)));
  return el("header", { class: "top" },
    el("div", { class: "bar" },
      el("span", { class: "kind" }, `Mixer ${version || ""} training report`),
      choice("Colours", [["", "Auto"], ["light", "Light"], ["dark", "Dark"]],
        colourScheme(), setColourScheme)),
    el("h1", null, runs.length === 1 ? runs[0].name
      : runs.length ? `${runs.length} runs` : "No runs"),
    runs.length === 1 ? single(runs[0], shown) : compared(runs, shown),
    notes(runs));
}

function single(run, shown) {
  return [
    shown.length ? el("dl", { class: "finals" }, shown.map((f) => {
      const { text, aside } = final(run, f) || {};
      return el("div", null, el("dt", null, f[1]),
        el("dd", null, el("span", { class: "big" }, text),
          el("small", null, aside)));
    })) : el("p", { class: "quiet" }, "This run has recorded no metrics."),
    el("dl", { class: "facts" }, (run.facts || []).map(([label, text]) =>
      el("div", null, el("dt", null, label), el("dd", null, text)))),
  ];
}

function compared(runs, shown) {
  const labels = [...new Set(runs.flatMap((run) =>
    (run.facts || []).map(([label]) => label)))];
  const facts = (run) => new Map(run.facts || []);
  return scrolls("Runs compared", el("table", { class: "compared" },
    el("thead", null, el("tr", null, el("td"),
      runs.map((run) => el("th", { scope: "col" }, named(run))))),
    el("tbody", null,
      shown.map((f) => el("tr", { class: "final" },
        el("th", { scope: "row" }, f[1]),
        runs.map((run) => {
          const found = final(run, f);
          return el("td", null, found
            ? [el("span", { class: "big" }, found.text),
              el("small", null, found.aside)] : "–");
        }))),
      labels.map((label) => el("tr", null,
        el("th", { scope: "row" }, label),
        runs.map((run) => el("td", null, facts(run).get(label) || "–")))))));
}

function named(run) {
  return [el("span", { class: "swatch", style: { background: run.colour } }),
    el("span", { class: "name", title: run.name }, run.name)];
}

function notes(runs) {
  const about = new Map();  // Often the same is said of all runs.
  for (const run of runs) {
    for (const text of run.notes || []) {
      about.set(text, [...(about.get(text) || []), run]);
    }
  }
  if (!about.size) return null;
  return el("aside", { class: "notes", "aria-label": "What is missing" },
    el("h2", null, "What is missing here"),
    el("ul", null, [...about].map(([text, of]) => el("li", null,
      of.length < runs.length
        ? of.map((run) => el("span", { class: "of" }, named(run))) : null,
      el("span", null, text)))));
}

// localStorage may throw in a file that was opened from a disk.
function colourScheme() {
  try {
    const kept = localStorage.getItem("mixer-report-colours");
    return ["light", "dark"].includes(kept) ? kept : "";
  } catch {
    return "";
  }
}

function setColourScheme(scheme) {
  document.documentElement.style.colorScheme = scheme;
  document.dispatchEvent(new Event("colours"));
  try {
    localStorage.setItem("mixer-report-colours", scheme);
  } catch {
    // Then it is for this visit only.
  }
}
