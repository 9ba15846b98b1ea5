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

  const leastShown = 12; // images of a long gallery, in whole rows
  for (const gallery of document.querySelectorAll(".gallery")) {
    const list = gallery.querySelector(".tiles");
    if (!list) continue;
    const filters = gallery.querySelector(".filters");
    const selects = [...gallery.querySelectorAll(".filters select")];
    const tiles = [...list.children];
    const told = gallery.querySelector(".filters output");
    const more = gallery.querySelector(".more");
    let open = false;
    const apply = () => {
      const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
      const most = columns * Math.max(2, Math.ceil(leastShown / columns));
      const found = tiles.filter((tile) => selects.every(
        (one) => !one.value || holds[one.dataset.filter](tile, one.value)));
      const folds = !open && found.length > most + columns; // not for one more row
      const shown = new Set(folds ? found.slice(0, most) : found);
      const kept = new Set(found);
      for (const tile of tiles) {
        tile.hidden = !kept.has(tile);
        tile.classList.toggle("folded", kept.has(tile) && !shown.has(tile));
      }
      more.hidden = !folds;
      more.textContent = `Show all ${found.length}`;
      if (told) told.textContent = `${shown.size} of ${tiles.length} shown`;
    };
    filters?.addEventListener("change", apply);
    more.addEventListener("click", () => {
      const next = list.querySelector(".folded button");
      open = true;
      apply();
      next?.focus();
    });
    addEventListener("resize", apply);
    if (filters) filters.hidden = false;
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
