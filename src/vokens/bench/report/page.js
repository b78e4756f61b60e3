"use strict";
const all = (query, place = document) => [...place.querySelectorAll(query)];

// A click on a column's head sorts by it, first the best, and a second click turns it round.
for (const head of all("thead th[aria-sort]")) head.querySelector("button").addEventListener("click", () => {
  const column = head.cellIndex, body = head.closest("table").tBodies[0];
  const first = head.dataset.better === "up" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const one of all("th[aria-sort]", head.parentNode)) one.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = row => row.cells[column].dataset.value;
  const text = row => row.cells[column].textContent;
  body.append(...[...body.rows].sort((a, b) => column
    ? (key(a) === undefined) - (key(b) === undefined) || sign * (key(a) - key(b))
    : sign * text(a).localeCompare(text(b), "en", { numeric: true })));
});

// Names above the plots show a codec alone while the pointer is on them, and hide it by a click.
for (const chip of all(".chip")) {
  const same = () => all("svg .series").filter(one => one.dataset.series === chip.dataset.series);
  chip.addEventListener("pointerenter", () => {
    all("svg").forEach(one => one.classList.add("dim"));
    same().forEach(one => one.classList.add("on"));
  });
  chip.addEventListener("pointerleave", () => {
    all("svg").forEach(one => one.classList.remove("dim"));
    same().forEach(one => one.classList.remove("on"));
  });
  chip.addEventListener("click", () => {
    const shown = chip.getAttribute("aria-pressed") === "true";
    chip.setAttribute("aria-pressed", String(!shown));
    same().forEach(one => one.classList.toggle("off", shown));
  });
}

// One sound at a time.
document.addEventListener("play", event => {
  for (const one of all("audio")) if (one !== event.target) one.pause();
}, true);

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
