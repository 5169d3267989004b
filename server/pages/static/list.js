// Searches while typing and sorts without leaving the page. The server does both; without it the page says so.

import { debounce, refresh } from "./live.js";

const RETRY_MILLISECONDS = 3000;
const form = document.querySelector(".search");
const count = document.getElementById("count");
let retry;

function address() {
  const fields = [...new FormData(form)].filter(([, value]) => value.trim());
  return fields.length ? `/?${new URLSearchParams(fields)}` : "/";
}

async function show() {
  clearTimeout(retry);
  history.replaceState(null, "", address());
  try {
    const fresh = await refresh(address(), ["list", "count"]);
    if (!fresh.getElementById("list")) location.assign(address()); // a page that says why
  } catch (error) {
    if (error.name === "AbortError") return;
    count.value = "The server cannot be reached. Trying again…";
    retry = setTimeout(show, RETRY_MILLISECONDS);
  }
}

if (form) {
  form.querySelector("button").hidden = true;
  form.addEventListener("input", debounce(show, 120));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    show();
  });
  document.getElementById("list").addEventListener("click", (event) => {
    const link = event.target.closest("thead a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    form.elements.sort.value = new URL(link.href).searchParams.get("sort") ?? "";
    show();
  });
}
