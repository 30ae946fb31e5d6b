// The page as a whole, and what its parts are made of. Text goes in as text
// nodes only: names of runs and classes are not to be trusted.

function el(tag, attributes, ...children) {
  const space = tag.startsWith("svg:") ? "http://www.w3.org/2000/svg"
    : "http://www.w3.org/1999/xhtml";
  const node = document.createElementNS(space, tag.replace("svg:", ""));
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child || child === 0));
  return node;
}

function button(label, action, attributes) {
  return el("button", { type: "button", onclick: action, ...attributes },
    label);
}

function checkbox(label, on, action, attributes) {
  const box = el("input", { type: "checkbox", checked: on && "",
    onchange: () => action(box.checked), ...attributes });
  return el("label", null, box, label);
}

function choice(label, options, action) {
  const node = el("select", { "aria-label": label,
    onchange: () => action(node.value) },
  options.map(([value, text]) => el("option", { value }, text)));
  return node;
}

function section(id, title, ...children) {
  return el("section", { id }, el("h2", null, title), children);
}

function block(title, ...children) {
  return el("div", { class: "block" }, el("h3", null, title), children);
}

function folded(title, note, ...children) {
  return el("details", { class: "folded" },
    el("summary", null, title, el("small", null, note)), children);
}

// Only this box scrolls, by keyboard too: so it takes the focus.
function scrolls(label, ...children) {
  return el("div", { class: "scrolls", tabindex: 0, role: "region",
    "aria-label": label }, children);
}

function table(head, rows, attributes) {
  return el("table", attributes,
    head && el("thead", null, el("tr", null,
      head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", null, rows.map((cells) => tableRow(...cells))));
}

function tableRow(first, ...rest) {
  return el("tr", null, el("th", { scope: "row" }, first),
    rest.map((cell) => el("td", null, cell)));
}

function clipped(text) {
  return el("span", { class: "name", title: text }, text);
}

function named(run) {
  return [el("span", { class: "swatch", style: `background:${run.colour}` }),
    clipped(run.name)];
}

// Six digits, with separators from ten thousand on.
function number(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e12)) {
    return value.toExponential(4).replace(/\.?0+e/, "e");
  }
  const short = Number(value.toPrecision(6));
  return size < 1e4 ? String(short)
    : short.toLocaleString("en-US", { maximumFractionDigits: 2 });
}

function whole(value) {
  return value.toLocaleString("en-US");
}

function percent(share, digits = 1) {
  return typeof share === "number" ? `${(100 * share).toFixed(digits)}%` : "–";
}

function tiles(items) {
  return el("dl", { class: "finals" }, items.map(([label, text, aside]) =>
    el("div", null, el("dt", null, label), el("dd", null,
      el("span", { class: "big" }, text), el("small", null, aside)))));
}

// [label, text of each run] of lists of [label, text], in their order.
function aligned(lists) {
  const labels = new Set(lists.flatMap((list) => list.map(([label]) => label)));
  const maps = lists.map((list) => new Map(list));
  return [...labels].map((label) =>
    [label, ...maps.map((map) => map.get(label) ?? "–")]);
}

function overview(runs, version) {
  const several = runs.length > 1;
  const finals = runs.map((run) => run.finals.map(([label, text, aside]) =>
    [label, [el("span", { class: "big" }, text), el("small", null, aside)]]));
  return el("header", null,
    el("div", { class: "bar" },
      el("span", { class: "quiet" }, `Mixer ${version} training report`),
      choice("Colours", [["", "Auto"], ["light", "Light"], ["dark", "Dark"]],
        (scheme) => {
          document.documentElement.style.colorScheme = scheme;
          document.dispatchEvent(new Event("colours"));
        })),
    el("h1", null, several ? `${runs.length} runs` : runs[0].name),
    several ? scrolls("Runs compared", table(["", ...runs.map(named)],
      [...aligned(finals), ...aligned(runs.map((run) => run.facts))],
      { class: "compared" }))
      : [tiles(runs[0].finals), el("dl", { class: "facts" },
        runs[0].facts.map(([label, text]) => el("div", null,
          el("dt", null, label), el("dd", null, text))))],
    missing(runs));
}

function missing(runs) {
  const lines = runs.flatMap((run) => run.notes.map((note) =>
    el("li", null, runs.length > 1 ? [named(run), " "] : null, note)));
  return lines.length ? el("aside", { class: "notes" },
    el("h2", null, "What is missing here"), el("ul", null, lines)) : null;
}

function settings(runs) {
  const head = runs.length > 1 ? ["", ...runs.map(named)] : null;
  const grid = (title, rows) => scrolls(title,
    table(head, rows, { class: "settings" }));
  const part = (title, key) => {
    const rows = aligned(runs.map((run) => run[key]));
    return rows.length
      ? folded(title, `${rows.length} entries`, grid(title, rows)) : null;
  };
  const different = aligned(runs.map((run) => run.settings))
    .filter(([, first, ...rest]) => rest.some((text) => text !== first));
  return section("settings", "Settings",
    runs.length > 1 ? block("What differs", different.length
      ? grid("Differences of the configurations", different)
      : el("p", { class: "quiet" }, "The configurations are the same."))
      : null,
    part("Configuration", "settings"), part("Environment", "environment"));
}

// A section with a part for each run that has it; of several one is open.
function byRun(id, title, runs, make) {
  const having = runs.filter((run) => run[id] && run[id].length !== 0);
  if (!having.length) return null;
  if (runs.length === 1) return section(id, title, make(having[0]));
  const parts = having.map((run) => folded(named(run), "", make(run)));
  parts[0].open = true;
  return section(id, title, parts);
}

function main() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs.map((run, i) => ({ ...run, colour: colour(i) }));
  const curves = curvesSection(runs);
  const parts = [
    curves.node,
    byRun("predictions", "Predictions", runs, predictions),
    byRun("weights", "Weights", runs, weights),
    settings(runs),
  ].filter(Boolean);
  document.getElementById("report").append(overview(runs, data.version),
    el("nav", null, parts.map((part) => el("a", { href: `#${part.id}` },
      part.querySelector("h2").textContent))), ...parts);
  curves.draw();
  // Paper can't be unfolded.
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((node) => {
      node.open = true;
    });
    curves.draw();
  });
}
