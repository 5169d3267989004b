// Search while typing. A complete list is filtered here; of a longer one the server sends the first matches.

import { debounce, refresh } from "./live.js";

const form = document.querySelector(".search");
const schema = document.getElementById("schema");
const list = document.getElementById("list");
const count = document.getElementById("count");
let rows = [];
let labels = [];

function readRows() {
  rows = [...document.querySelectorAll("tbody tr")];
  labels = rows.map((row) => row.cells[0].textContent);
}

function address() {
  const fields = [...new FormData(form)].filter(([, value]) => value.trim());
  return fields.length ? `/?${new URLSearchParams(fields)}` : "/";
}

function filterHere() {
  const searched = form.q.value.trim().toLowerCase();
  let found = 0;
  rows.forEach((row, number) => {
    const matches = labels[number].toLowerCase().includes(searched);
    if (row.hidden === matches) row.hidden = !matches;
    found += matches;
  });
  document.getElementById("no-match").hidden = found > 0;
  document.querySelector(".relations").hidden = !found;
  count.value = `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
}

const filterOnServer = debounce(async () => {
  try {
    await refresh(address(), ["list", "count"]);
    readRows();
  } catch (error) {
    if (error.name !== "AbortError") location.assign(address());
  }
}, 120);

if (form) {
  readRows();
  form.querySelector("button").hidden = true;
  form.addEventListener("input", () => {
    history.replaceState(null, "", address());
    if ("whole" in list.dataset && !schema?.value) filterHere();
    else filterOnServer();
  });
}
