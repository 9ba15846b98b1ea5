"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  const image = document.getElementById("viewer-image");
  const problem = document.getElementById("viewer-problem");
  const text = document.getElementById("viewer-text");
  const previous = document.getElementById("viewer-previous");
  const next = document.getElementById("viewer-next");
  let current = null;

  const holds = {
    label: (tile, wanted) => tile.dataset.label.split(" ").includes(wanted),
    wrong: (tile, wanted) => tile.dataset.wrong === wanted,
    split: (tile, wanted) => tile.dataset.split === wanted,
    confidence: (tile, wanted) => {
      const [low, high] = wanted.split(" ").map(Number);
      const value = Number(tile.dataset.confidence);
      return low <= value && value < high;
    },
  };

  for (const gallery of document.querySelectorAll(".gallery")) {
    const filters = gallery.querySelector(".filters");
    if (!filters) continue;
    const selects = [...filters.querySelectorAll("select")];
    const tiles = [...gallery.querySelectorAll(".tiles > li")];
    const told = filters.querySelector("output");
    const apply = () => {
      let shown = 0;
      for (const tile of tiles) {
        tile.hidden = !selects.every(
          (one) => !one.value || holds[one.dataset.filter](tile, one.value));
        shown += !tile.hidden;
      }
      told.textContent = `${shown} of ${tiles.length} shown`;
    };
    filters.addEventListener("change", apply);
    filters.hidden = false;
    apply(); // browsers keep the choices when a page is reloaded
  }

  const beside = (tile, step) => {
    do {
      tile = step > 0 ? tile.nextElementSibling : tile.previousElementSibling;
    } while (tile && tile.hidden);
    return tile;
  };

  const show = (tile) => {
    current = tile;
    const small = tile.querySelector("img");
    image.hidden = !small;
    problem.hidden = Boolean(small);
    if (small) image.src = small.src;
    else problem.textContent = tile.querySelector(".missing").textContent;
    text.replaceChildren(tile.querySelector(".caption").cloneNode(true));
    previous.disabled = !beside(tile, -1);
    next.disabled = !beside(tile, 1);
    if (!viewer.open) viewer.showModal();
  };

  const move = (step) => {
    const tile = current && beside(current, step);
    if (tile) show(tile);
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".tiles button");
    if (button) show(button.closest("li"));
  });
  previous.addEventListener("click", () => move(-1));
  next.addEventListener("click", () => move(1));
  document.getElementById("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close(); // the backdrop
  });
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    move(step);
  });
  viewer.addEventListener("close", () => {
    current?.querySelector("button").focus();
    image.removeAttribute("src");
  });
})();
