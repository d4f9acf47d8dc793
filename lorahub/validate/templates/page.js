"use strict";
const each = (selector, visit, root = document) => root.querySelectorAll(selector).forEach(visit);

function filter() {
  const chosen = new Set();
  each("#filter input:checked", (box) => chosen.add(box.value));
  let shown = 0, all = 0;
  each("#filter ~ table tr[data-severity]", (row) => {
    row.hidden = !chosen.has(row.dataset.severity);
    shown += row.hidden ? 0 : 1;
    all += 1;
  });
  document.getElementById("shown").textContent = shown < all ? `${shown} of ${all} shown` : "";
}

function value(id) {
  const control = document.getElementById(id);
  if (control === null) return null;
  if (control.type !== "range") return control.value;
  const text = control.dataset.values.split("|")[control.value];
  control.setAttribute("aria-valuetext", text);
  const output = control.nextElementSibling;
  if (output.value !== text) output.value = text;
  return text;
}

function show() {
  const prompt = value("pick-prompt") ?? "0", steps = value("pick-steps"), weight = value("pick-lambda");
  const fits = (wanted, chosen) => wanted === "" || chosen === null || wanted === chosen;
  each(".strip", (strip) => {
    let found = false;
    each(".square", (square) => {
      square.hidden = !(fits(square.dataset.steps, steps) && fits(square.dataset.lambda, weight));
      found = found || !square.hidden;
      each(".shots", (shots) => { shots.hidden = shots.dataset.prompt !== prompt; }, square);
    }, strip);
    strip.querySelector(".none").hidden = found;
  });
}

if (document.getElementById("filter")) {
  document.getElementById("filter").addEventListener("change", filter);
}
if (document.getElementById("controls")) {
  document.getElementById("controls").addEventListener("input", show);
  show();
}
