// Configurations and environments: what differs, and all of it.

// [[key, [text or null for each run]]], in the order of first appearance.
function settingRows(trees) {
  const rows = new Map();
  trees.forEach((tree, i) => {
    for (const [key, text] of flat(tree)) {
      if (!rows.has(key)) rows.set(key, new Array(trees.length).fill(null));
      rows.get(key)[i] = text;
    }
  });
  return [...rows];
}

function settingTable(runs, rows, label) {
  return scrolls(label, el("table", { class: "settings" },
    runs.length > 1 ? el("thead", null, el("tr", null,
      el("th", { scope: "col" }, "key"),
      runs.map((run) => el("th", { scope: "col" }, named(run))))) : null,
    el("tbody", null, rows.map(([key, texts]) => el("tr", null,
      el("th", { scope: "row" }, key),
      texts.map((text) => el("td", null, text === null ? "–" : text)))))));
}

function differences(runs) {
  const rows = settingRows(runs.map((run) => run.settings))
    .filter(([, texts]) => texts.some((text) => text !== texts[0]));
  return section("differences", "What differs",
    rows.length ? settingTable(runs, rows, "Differences of the configurations")
      : el("p", { class: "quiet" }, "The configurations are the same."));
}

// A folded table with a box that filters its rows.
function folded(title, runs, trees) {
  const rows = settingRows(trees);
  if (!rows.length) return null;
  const grid = settingTable(runs, rows, title);
  const lines = [...grid.querySelectorAll("tbody tr")];
  return el("details", { class: "folded" },
    el("summary", null, title,
      el("small", null, `${rows.length} ${rows.length === 1
        ? "entry" : "entries"}`)),
    filterBox(`Filter: ${title}`, lines), grid);
}

function filterBox(label, lines) {
  const count = el("span", { class: "quiet", "aria-live": "polite" });
  const box = el("input", {
    type: "search", placeholder: "Filter", "aria-label": label,
    autocomplete: "off", spellcheck: "false", oninput: () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const line of lines) {
        const text = line.textContent.toLowerCase();
        line.hidden = !words.every((word) => text.includes(word));
        left += line.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${left} of ${lines.length}` : "";
    },
  });
  return el("p", { class: "filter" }, box, count);
}

function settings(runs) {
  const parts = [
    folded("Configuration", runs, runs.map((run) => run.settings)),
    folded("Environment", runs, runs.map((run) => run.environment)),
  ].filter(Boolean);
  return parts.length ? section("settings", "Settings", parts) : null;
}
