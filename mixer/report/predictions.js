// What a run's model predicts, and pictures of its weights.

const FIRST_CARDS = 12;

function predictions({ predictions: p }) {
  const name = (label) => String(p.classes[label] ?? label);
  return [
    el("p", { class: "quiet" }, `The split “${p.split}” with the weights of `
      + `step ${whole(p.step)}: ${whole(p.examples)} examples.`),
    tiles([["Accuracy", percent(p.accuracy, 2)],
      ["Top-5 accuracy", percent(p.accuracy_top5, 2)],
      ["Mean loss", p.mean_loss === null ? "–"
        : number(Number(p.mean_loss.toPrecision(4)))],
      ["Calibration error", percent(p.calibration.ece, 2)]]),
    gallery("Worst mistakes", "Wrong, highest loss first.", p.worst, name),
    el("div", { class: "halves" },
      confusion(p, name),
      block("Most frequent confusions", p.pairs.length
        ? scrolls("Most frequent confusions", table(
          ["label", "taken for", "times"], p.pairs.map(([a, b, count]) =>
            [clipped(name(a)), clipped(name(b)), whole(count)]),
          { class: "numbers" })) : el("p", { class: "quiet" }, "None.")),
      byClass(p, name), reliability(p.calibration)),
    gallery("Samples", "Spread evenly over the split.", p.samples, name),
  ];
}

function gallery(title, lead, examples, name) {
  const cards = (some) => el("ul", { class: "cards" },
    some.map((example) => card(example, name)));
  const rest = examples.length - FIRST_CARDS;
  return block(title, el("p", { class: "quiet" },
    examples.length ? lead : "None in this split."),
  cards(examples.slice(0, FIRST_CARDS)),
  rest > 0 ? folded(`${title}: ${rest} more`, "",
    cards(examples.slice(FIRST_CARDS))) : null);
}

function card(example, name) {
  const file = example.file || `#${example.index}`;
  const label = name(example.label);
  // PNGs are small images whose every pixel counts.
  const small = example.image.startsWith("data:image/png");
  return el("li", { class: "card" },
    el("img", { src: example.image, alt: `Example ${file}, label ${label}`,
      class: small ? "pixels" : "" }),
    el("p", { class: "label", title: label }, label),
    el("ol", { class: "scores" }, example.top.map(([k, score]) => {
      const right = k === example.label;
      return el("li", { class: right ? "right" : "" },
        el("span", { class: "fill", style: `width:${100 * score}%` }),
        clipped(right ? `✓ ${name(k)}` : name(k)),
        el("span", { class: "score" }, percent(score)));
    })),
    el("p", { class: "quiet" },
      el("span", { class: "name", title: file }, file.split("/").pop()),
      example.loss === null ? null
        : el("span", null, `loss ${number(Number(example.loss.toPrecision(4)))}`)));
}

function confusion(p, name) {
  const { classes, counts, elsewhere } = p.confusion;
  const others = elsewhere.some((count) => count > 0);
  const taken = [...classes.map(name), ...others ? ["elsewhere"] : []];
  const readout = el("p", { class: "readout", "aria-live": "polite" },
    "Point at a cell, or tap it.");
  const rows = classes.map((label, i) => {
    const row = others ? [...counts[i], elsewhere[i]] : counts[i];
    const sum = counts[i].reduce((a, b) => a + b, elsewhere[i]);
    return el("tr", null, el("th", { scope: "row" }, clipped(name(label))),
      row.map((count, j) => {
        const share = count / (sum || 1);
        // A root, so that rare confusions can be seen beside the diagonal.
        const shade = count ? 8 + 92 * Math.sqrt(share) : 0;
        return el("td", { style: `--shade:${shade}%`,
          class: shade > 79 ? "deep" : "", title: `${name(label)}, taken for `
            + `${taken[j]}: ${whole(count)} of ${whole(sum)} `
            + `(${percent(share)})` },
        classes.length <= 12 || count ? String(count) : "");
      }));
  });
  const show = (event) => {
    readout.textContent = event.target.title || readout.textContent;
  };
  const dense = classes.length > 12 ? " dense" : "";
  return block("Confusion matrix", el("p", { class: "quiet" },
    "A row for each label, a column for what it was taken for; shaded by the "
      + "share of the row.", p.by_class.length > classes.length
      ? ` The ${classes.length} classes with most confusions.` : ""),
  readout, scrolls("Confusion matrix", el("table",
    { class: `matrix${dense}`, onpointerover: show, onclick: show },
    el("thead", null, el("tr", null, el("td"), taken.map((text) =>
      el("th", { scope: "col" }, clipped(text))))),
    el("tbody", null, rows))));
}

function byClass(p, name) {
  const rows = p.by_class.map(([label, examples, correct]) => {
    const share = examples ? correct / examples : null;
    return { class: name(label), examples, correct, accuracy: share,
      line: tableRow(clipped(name(label)), whole(examples), whole(correct),
        [el("span", { class: "share", style: `--share:${100 * share}%` }),
          percent(share)]) };
  });
  const body = el("tbody");
  let [order, way] = ["", 1];
  const sort = (key) => {
    way = key === order ? -way : 1;
    order = key;
    rows.sort((a, b) => way * (key === "class"
      ? a.class.localeCompare(b.class, "en", { numeric: true })
      : (a[key] ?? 2) - (b[key] ?? 2)));
    body.replaceChildren(...rows.map((row) => row.line));
    heads.forEach((head) => head.setAttribute("aria-sort",
      head.textContent !== key ? "none" : way > 0 ? "ascending" : "descending"));
  };
  const heads = ["class", "examples", "correct", "accuracy"].map((key) =>
    el("th", { scope: "col" }, button(key, () => sort(key), { class: "sort" })));
  sort("accuracy");
  return block("Accuracy by class",
    scrolls("Accuracy by class", el("table", { class: "numbers" },
      el("thead", null, el("tr", null, heads)), body)));
}

function reliability({ ece, bins }) {
  const [left, top, right, bottom] = [36, 8, 272, 244];
  const x = (v) => left + v * (right - left);
  const y = (v) => bottom - v * (bottom - top);
  const bar = (bin, kind, from, to) => el("svg:rect", { class: kind,
    x: x(bin[0]) + 1, width: x(bin[1]) - x(bin[0]) - 2,
    y: y(Math.max(from, to)), height: Math.abs(y(from) - y(to)) });
  const rows = bins.map(([low, high, count, score, accuracy]) =>
    [`${low.toFixed(3)}–${high.toFixed(3)}`, whole(count), percent(score),
      percent(accuracy)]);
  return block("Calibration", el("p", { class: "quiet" },
    `Expected calibration error ${percent(ece, 2)}. Accuracy by the score of `
      + "the prediction: ", el("span", { class: "swatch over" }),
    "too sure, ", el("span", { class: "swatch under" }), "not sure enough."),
  el("svg:svg", { viewBox: "0 0 280 280", class: "diagram", role: "img",
    "aria-label": "Accuracy by score; the table has the numbers." },
  [0, 0.25, 0.5, 0.75, 1].map((v) => [
    el("svg:line", { x1: left, x2: right, y1: y(v), y2: y(v) }),
    el("svg:text", { x: 2, y: y(v) + 4 }, String(v)),
    el("svg:text", { x: x(v) - 10, y: bottom + 16 }, String(v))]),
  el("svg:text", { x: 120, y: 278 }, "top score"),
  bins.map((bin) => [bar(bin, "bar", 0, Math.min(bin[3], bin[4])),
    bar(bin, bin[3] > bin[4] ? "over" : "under", bin[3], bin[4])]),
  el("svg:line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) })),
  folded("Numbers", "", scrolls("Calibration by bin", table(
    ["score", "examples", "mean score", "accuracy"], rows,
    { class: "numbers" }))));
}

function weights({ weights: figures }) {
  return el("div", { class: "figures" }, figures.map((figure) =>
    el("figure", null, el("img", { src: figure.image, class: "pixels",
      alt: `${figure.title}: small pictures of weights`,
      width: figure.width * Math.max(1, Math.floor(400 / figure.width)) }),
    el("figcaption", null, el("strong", null, figure.title), " ",
      figure.caption))));
}
