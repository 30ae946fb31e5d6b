// Figures of the weights, each pixel a square, and the dialog that enlarges.

function weightsPanel({ weights }) {
  const tokens = weights.tokens || [];
  return [
    weights.stem ? figures([weights.stem]) : null,
    tokens.length ? figures(tokens) : null,
  ];
}

function figures(list) {
  return el("div", { class: "figures" }, list.map((figure) => {
    const image = picture(figure, 320);
    return el("figure", { class: "weight" },
      button(image, () => enlarge(figure), {
        class: "enlarge", "aria-label": `Enlarge: ${figure.title}`,
      }),
      el("figcaption", null, el("strong", null, figure.title),
        el("span", null, figure.caption)));
  }));
}

function picture(figure, room) {
  const factor = Math.max(1, Math.floor(room / figure.width));
  return el("img", {
    src: figure.image, alt: figure.alt || figure.title, class: "pixels",
    width: figure.width * factor, height: figure.height * factor,
  });
}

function enlarge(figure) {
  const room = Math.min(innerWidth - 64,
    (innerHeight - 140) * figure.width / figure.height);
  const dialog = el("dialog", {
    "aria-label": figure.title, onclose: () => dialog.remove(),
    onclick: (event) => { if (event.target === dialog) dialog.close(); },
  },
  el("div", { class: "heading" }, el("h3", null, figure.title),
    button("Close", () => dialog.close())),
  picture(figure, room), el("p", { class: "quiet" }, figure.caption));
  document.body.append(dialog);
  dialog.showModal();
}
