// Examples, confusions, accuracy by class and calibration of one run.

function className(predictions, label) {
  const name = predictions.classes && predictions.classes[label];
  return name === undefined || name === null ? String(label) : String(name);
}

function predictionsPanel(run) {
  const p = run.predictions;
  const name = (label) => className(p, label);
  const tiles = [
    ["Accuracy", percent(p.accuracy, 2)],
    ["Top-5 accuracy", percent(p.accuracy_top5, 2)],
    ["Mean loss", p.mean_loss === null || p.mean_loss === undefined
      ? "–" : number4(p.mean_loss)],
    ["Calibration error", p.calibration ? percent(p.calibration.ece, 2) : "–"],
  ];
  const id = `run-${run.index}`;
  return [
    el("p", { class: "quiet" },
      `The split “${p.split}” with the weights of `
      + `step ${whole(p.step)}: ${whole(p.examples)} examples.`),
    el("dl", { class: "finals" }, tiles.map(([label, text]) => el("div", null,
      el("dt", null, label),
      el("dd", null, el("span", { class: "big" }, text))))),
    gallery("Worst mistakes", "Wrong, highest loss first.", p.worst, name,
      "No mistake in this split."),
    el("div", { class: "halves" },
      p.confusion ? confusion(p, name, `${id}-confusion`) : null,
      confusions(p, name),
      byClass(p, name), p.calibration ? reliability(p.calibration) : null),
    gallery("Samples", "Spread evenly over the split.", p.samples, name, null),
  ];
}

function gallery(title, lead, examples, name, none) {
  if (!examples || !examples.length) {
    return none && examples
      ? el("div", { class: "block" }, el("h3", null, title),
        el("p", { class: "quiet" }, none)) : null;
  }
  const cards = examples.map((e) => card(e, name));
  const rest = cards.slice(FIRST_CARDS);
  const fold = (folded) => rest.forEach((c) => { c.hidden = folded; });
  fold(true);
  return el("div", { class: "block" }, el("h3", null, title),
    el("p", { class: "quiet" }, lead),
    el("ul", { class: "cards" }, cards),
    rest.length ? toggle(`Show all ${cards.length}`, (on) => fold(!on),
      { class: "more", "aria-label": `${title}: show all ${cards.length}` })
      : null);
}

const FIRST_CARDS = 12;
const BOX = 168;  // Pixels of a card's image, at most.

function card(example, name) {
  const number = `#${example.index}`;
  const image = el("img", {
    alt: `Example ${example.file || number}, label ${name(example.label)}`,
    onload: () => {
      const side = Math.max(image.naturalWidth, image.naturalHeight);
      const { clientWidth, clientHeight } = image.parentElement;
      const room = Math.min(clientWidth || BOX, clientHeight || BOX);
      if (side * 2 > room) return;
      // Whole factors, so that every pixel is as large as the next.
      image.style.width =
        `${image.naturalWidth * Math.floor(room / side)}px`;
      image.classList.add("pixels");
    },
  });
  image.src = example.image;
  return el("li", { class: "card" },
    el("div", { class: "picture" }, image),
    el("p", { class: "label", title: name(example.label) },
      name(example.label)),
    el("ol", { class: "scores" }, example.top.map(([label, score]) => {
      const right = label === example.label;
      return el("li", { class: right ? "right" : null },
        el("span", { class: "fill", style: { width: `${100 * score}%` } }),
        el("span", { class: "name", title: name(label) },
          right ? "✓ " : "", name(label)),
        el("span", { class: "score" }, percent(score)));
    })),
    el("p", { class: "quiet" },
      el("span", { class: "name", title: example.file || number },
        example.file ? example.file.split("/").pop() : number),
      example.loss === null || example.loss === undefined
        ? null : el("span", null, `loss ${number4(example.loss)}`)));
}

function confusions(p, name) {
  const title = "Most frequent confusions";
  const pairs = p.pairs || [];
  return el("div", { class: "block" }, el("h3", null, title),
    pairs.length ? scrollsBoth(title, pairs.length, table(
      ["label", "taken for", "times"],
      pairs.map(([label, predicted, count]) => [
        clipped(name(label)), clipped(name(predicted)), whole(count)]),
      { class: "numbers names" }))
      : el("p", { class: "quiet" }, "None."));
}

function clipped(text) {
  return el("span", { class: "name", title: text }, text);
}

function byClass(p, name) {
  const rows = (p.by_class || []).map(([label, examples, correct]) =>
    ({ label, name: name(label), examples, correct,
      share: examples ? correct / examples : null }));
  if (!rows.length) return null;
  const lines = new Map(rows.map((row) => [row, el("tr", null,
    el("th", { scope: "row" }, clipped(row.name)),
    el("td", null, whole(row.examples)), el("td", null, whole(row.correct)),
    el("td", { class: "meter" }, el("span", { class: "track" },
      el("span", { class: "fill",
        style: { width: `${100 * (row.share || 0)}%` } })),
    el("span", { class: "share" }, percent(row.share))))]));
  const body = el("tbody");
  const columns = [["class", "name"], ["examples", "examples"],
    ["correct", "correct"], ["accuracy", "share"]];
  let order = ["share", 1];
  const sort = () => {
    const [key, way] = order;
    const value = (row) => (row[key] === null ? Infinity : row[key]);
    rows.sort((a, b) => way * (key === "name"
      ? a.name.localeCompare(b.name, "en", { numeric: true })
      : value(a) - value(b) || 0) || a.label - b.label);
    body.replaceChildren(...rows.map((row) => lines.get(row)));
    heads.forEach((head, i) => head.setAttribute("aria-sort",
      columns[i][1] !== key ? "none" : way > 0 ? "ascending" : "descending"));
  };
  const heads = columns.map(([text, key]) => el("th", { scope: "col" },
    button(text, () => {
      order = [key, order[0] === key ? -order[1] : 1];
      sort();
    }, { class: "sort" })));
  sort();
  return el("div", { class: "block" }, el("h3", null, "Accuracy by class"),
    filterBox("Filter classes", [...lines.values()]),
    scrollsBoth("Accuracy by class", rows.length,
      el("table", { class: "numbers classes" },
        el("thead", null, el("tr", null, heads)), body)));
}
