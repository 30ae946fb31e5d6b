// The page and its parts. Text goes in as text nodes only: names of runs and
// classes are not to be trusted.

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null));
  return node;
}

function checkbox(label, on, action, attributes) {
  return el("label", null, el("input", { type: "checkbox", ...attributes,
    checked: on ? "" : null, onchange: (event) => action(event.target.checked),
  }), label);
}

function choice(label, options, action) {
  return el("select", { "aria-label": label,
    onchange: (event) => action(event.target.value) },
  options.map(([value, text]) => el("option", { value }, text)));
}

function section(id, title, ...children) {
  return el("section", { id }, el("h2", null, title), children);
}

function block(title, note, ...children) {
  return el("div", { class: "block" }, el("h3", null, title),
    note && el("p", { class: "quiet" }, note), children);
}

function folded(title, ...children) {
  return el("details", null, el("summary", null, title), children);
}

// In a box that scrolls, by keyboard too: so the box takes the focus.
function table(label, head, rows, kind) {
  return el("div", { class: "scrolls", tabindex: 0, role: "region",
    "aria-label": label },
  el("table", { class: kind || "numbers" },
    head && el("thead", null, el("tr", null,
      head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", null, rows.map(([first, ...rest]) => el("tr", null,
      el("th", { scope: "row" }, first),
      rest.map((cell) => el("td", null, cell)))))));
}

function clipped(text) {
  return el("span", { class: "name", title: text }, text);
}

function named(run) {
  return [el("span", { class: "swatch", style: `background:${run.colour}` }),
    clipped(run.name)];
}

function whole(value) {
  return value.toLocaleString("en-US");
}

function number(value, digits = 6) {
  return typeof value === "number" ? String(Number(value.toPrecision(digits)))
    : "–";
}

function percent(share, digits = 1) {
  return typeof share === "number" ? `${(100 * share).toFixed(digits)}%` : "–";
}

// A share as a bar and a number.
function bar(share) {
  return [el("span", { class: "share", style: `--share:${100 * share}%` }),
    percent(share)];
}

// [label, value in each list] of lists of [label, value], in their order.
function aligned(lists, missing = "–") {
  const maps = lists.map((list) => new Map(list));
  const labels = new Set(maps.flatMap((map) => [...map.keys()]));
  return [...labels].map((label) =>
    [label, ...maps.map((map) => map.get(label) ?? missing)]);
}

function overview(runs, version) {
  const several = runs.length > 1;
  const finals = (run) => run.finals.map(([label, text, aside]) =>
    [label, [el("span", { class: "big" }, text), el("small", null, aside)]]);
  const notes = runs.flatMap((run) => run.notes.map((note) =>
    el("li", null, several ? [named(run), " "] : null, note)));
  return el("header", null,
    el("div", { class: "bar" },
      el("span", { class: "quiet" }, `Mixer ${version} training report`),
      choice("Colours", [["", "Auto"], ["light", "Light"], ["dark", "Dark"]],
        (scheme) => {
          document.documentElement.style.colorScheme = scheme;
          redraw();
        })),
    el("h1", null, several ? `${runs.length} runs` : runs[0].name),
    several ? null : el("dl", { class: "tiles" }, finals(runs[0]).map(
      ([label, tile]) => el("div", null, el("dt", null, label),
        el("dd", null, tile)))),
    table("Facts", several ? ["", ...runs.map(named)] : null,
      aligned(runs.map((run) => several ? [...finals(run), ...run.facts]
        : run.facts)), "facts"),
    notes.length ? el("aside", null, el("h3", null, "What is missing here"),
      el("ul", null, notes)) : null);
}

function settings(runs) {
  const grid = (title, rows) =>
    table(title, ["", ...runs.map(named)], rows, "settings");
  const part = (title, key) => {
    const rows = aligned(runs.map((run) => run[key]));
    return folded(`${title}: ${rows.length} entries`, grid(title, rows));
  };
  const different = aligned(runs.map((run) => run.settings))
    .filter(([, first, ...rest]) => rest.some((text) => text !== first));
  return section("settings", "Settings",
    different.length ? grid("Differences", different) : null,
    part("Configuration", "settings"), part("Environment", "environment"));
}

// A section with a part for each run that has it; of several one is open.
function byRun(id, title, runs, make) {
  const having = runs.filter((run) => run[id] && run[id].length !== 0);
  if (!having.length) return null;
  if (runs.length === 1) return section(id, title, make(having[0][id]));
  const parts = having.map((run) => folded(named(run), make(run[id])));
  parts[0].open = true;
  return section(id, title, parts);
}

function predictions(p) {
  const name = (label) => String(p.classes[label] ?? label);
  const classes = p.by_class.map(([label, examples, correct]) =>
    [label, examples, correct, examples ? correct / examples : 2]);
  classes.sort((a, b) => a[3] - b[3]);
  const cards = (examples) => el("ul", { class: "cards" },
    examples.map((example) => card(example, name)));
  return [
    el("p", null, `The split “${p.split}” with the weights of step `
      + `${whole(p.step)}: ${whole(p.examples)} examples, accuracy `
      + `${percent(p.accuracy, 2)}, top-5 ${percent(p.accuracy_top5, 2)}, `
      + `balanced ${percent(p.balanced_accuracy, 2)}, macro F1 `
      + `${percent(p.macro_f1, 2)}, mean loss ${number(p.mean_loss, 4)}.`),
    block("Worst mistakes", "Wrong, highest loss first.", cards(p.worst)),
    confusion(p, name),
    el("div", { class: "halves" },
      block("Most frequent confusions", null,
        table("Most frequent confusions", ["label", "taken for", "times"],
          p.pairs.map(([label, taken, count]) =>
            [clipped(name(label)), clipped(name(taken)), whole(count)]))),
      block("Accuracy by class", null,
        table("Accuracy by class", ["class", "examples", "correct", "accuracy"],
          classes.map(([label, examples, correct, share]) =>
            [clipped(name(label)), whole(examples), whole(correct),
              examples ? bar(share) : "–"]))),
      block("Calibration",
        `Expected calibration error ${percent(p.calibration.ece, 2)}.`,
        table("Calibration", ["score", "examples", "mean score", "accuracy"],
          p.calibration.bins.map(([low, high, count, score, accuracy]) =>
            [`${low.toFixed(3)}–${high.toFixed(3)}`, whole(count), bar(score),
              bar(accuracy)])))),
    folded("Samples, spread evenly over the split", cards(p.samples)),
  ];
}

function card(example, name) {
  const file = (example.file || `#${example.index}`).split("/").pop();
  const label = name(example.label);
  return el("li", { class: "card" },
    el("img", { src: example.image, alt: `${file}, label ${label}`,
      // PNGs are small images whose every pixel counts.
      class: example.image.startsWith("data:image/png") ? "pixels" : "" }),
    el("p", { class: "label", title: label }, label),
    el("ol", null, example.top.map(([k, score]) => {
      const right = k === example.label;
      return el("li", { class: right ? "right" : "",
        style: `--share:${100 * score}%` },
      clipped(right ? `✓ ${name(k)}` : name(k)), el("span", null,
        percent(score)));
    })),
    el("p", { class: "quiet", title: example.file }, clipped(file),
      el("span", null, `loss ${number(example.loss, 4)}`)));
}

function confusion(p, name) {
  const { classes, counts, elsewhere } = p.confusion;
  const small = classes.length <= 12;
  const taken = [...classes.map(name), "elsewhere"];
  const rows = classes.map((label, i) => {
    const row = [...counts[i], elsewhere[i]];
    const sum = row.reduce((a, b) => a + b) || 1;
    return [clipped(name(label)), ...row.map((count, j) => {
      // A root, so that rare confusions can be seen beside the diagonal.
      const shade = count ? 8 + 92 * Math.sqrt(count / sum) : 0;
      return el("span", { style: `--shade:${shade}%`,
        class: shade > 79 ? "deep" : "", title: `${name(label)}, taken for `
          + `${taken[j]}: ${whole(count)} (${percent(count / sum)})` },
      small || count ? String(count) : " ");
    })];
  });
  return block("Confusion matrix", "A row for each label, a column for what it "
    + "was taken for; shaded by the share of the row."
    + (classes.length < p.classes.length
      ? ` The ${classes.length} classes with most confusions.` : ""),
  table("Confusion matrix", ["", ...taken.map(clipped)], rows,
    small ? "matrix" : "matrix dense"));
}

function weights(figures) {
  return el("div", { class: "figures" }, figures.map((figure) =>
    el("figure", null, el("img", { src: figure.image, class: "pixels",
      alt: `${figure.title}: small pictures of weights`,
      width: figure.width * Math.max(1, Math.floor(400 / figure.width)) }),
    el("figcaption", null, el("strong", null, figure.title), " ",
      figure.caption))));
}

function main() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs.map((run, i) => ({ ...run, colour: colour(i) }));
  const parts = [curves(runs),
    byRun("predictions", "Predictions", runs, predictions),
    byRun("weights", "Weights", runs, weights),
    settings(runs)].filter(Boolean);
  document.getElementById("report").append(overview(runs, data.version),
    el("nav", null, parts.map(({ id }) => el("a", { href: `#${id}`,
      class: "quiet" }, id))), ...parts);
  addEventListener("beforeprint", () => {  // Paper can't be unfolded.
    document.querySelectorAll("details:not(.records)").forEach((node) => {
      node.open = true;
    });
    redraw();
  });
}
