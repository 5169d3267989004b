// Search as you type. A whole list is filtered in place; of a longer one the server sends the first that match.

import { refresh, settled } from "./live.js";

const form = document.querySelector(".search");
const schema = document.getElementById("schema");
const list = document.getElementById("list");
const count = document.getElementById("count");
let rows = [];
let labels = [];

function read() {
  rows = [...document.querySelectorAll("tbody tr")];
  labels = rows.map((row) => row.cells[0].textContent);
}

function address() {
  const fields = [...new FormData(form)].filter(([, value]) => value.trim());
  return fields.length ? `/?${new URLSearchParams(fields)}` : "/";
}

function filterHere() {
  const words = form.q.value.trim().toLowerCase();
  let found = 0;
  rows.forEach((row, number) => {
    const matches = labels[number].toLowerCase().includes(words);
    if (row.hidden === matches) row.hidden = !matches;
    found += matches;
  });
  document.getElementById("none").hidden = found > 0;
  document.querySelector(".relations").hidden = !found;
  count.value = `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
}

const askServer = settled(async () => {
  try {
    await refresh(address(), ["list", "count"]);
    read();
  } catch (error) {
    if (error.name !== "AbortError") location.assign(address());
  }
}, 120);

if (form) {
  read();
  form.querySelector("button").hidden = true;
  form.addEventListener("input", () => {
    history.replaceState(null, "", address());
    if ("whole" in list.dataset && !schema?.value) filterHere();
    else askServer();
  });
}
