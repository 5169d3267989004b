// Updates the page of a relation while its form changes. The server reads the same fields as without JavaScript.

import { debounce, refresh } from "./live.js";
import { checkColumns, moveRow, numberRows, pickColumn, pickComparison, removeRow, showNotes, watchColumns } from "./rows.js";
import { offerTimezones } from "./timezones.js";

const form = document.getElementById("shape");
const PARTS = ["result", "preview"];
const UNREACHABLE = "The server cannot be reached.";

function showFault(changes) {
  for (const slot of form.querySelectorAll(".fault")) {
    slot.hidden = true;
    slot.replaceChildren();
  }
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  const field = changes.dataset.fault;
  const slot = document.getElementById(`fault-${field}`);
  if (!changes.textContent || !slot || (!field && document.getElementById("download"))) return;
  slot.append(...changes.childNodes);
  slot.hidden = false;
  slot.closest("details")?.setAttribute("open", "");
  markInvalid(slot);
}

// Marks the inputs of the field that this message is about.
function markInvalid(slot) {
  const field = slot.id.slice("fault-".length);
  const control = form.elements[`${field}.value`] ?? form.elements[`${field}.column`] ?? form.elements[field];
  for (const input of control instanceof Element ? [control] : control ?? []) {
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", slot.id);
  }
}

async function update() {
  const preview = document.getElementById("preview");
  preview.setAttribute("aria-busy", "true");
  try {
    const fields = new URLSearchParams(new FormData(form));
    const fresh = await refresh(`${form.getAttribute("action")}?${fields}`, PARTS, { "X-Sluice-Live": "1" });
    const changes = fresh.getElementById("changes");
    if (!changes) throw new Error(fresh.querySelector("h1 + p")?.textContent ?? UNREACHABLE);
    showFault(changes);
    showNotes(fresh);
    history.replaceState(null, "", changes.dataset.page);
    showCopyButtons();
  } catch (error) {
    if (error.name === "AbortError") return;
    const reason = error.name === "TypeError" ? UNREACHABLE : error.message;
    document.querySelector("#preview .empty, #preview .scroll")?.replaceChildren(`${reason} Change anything to try again.`);
  }
  preview.removeAttribute("aria-busy");
}

// Disables the options that the chosen format does not have, so that they are not sent.
function disableUnusedOptions() {
  const json = form.elements.format.value === "ndjson";
  for (const label of form.querySelectorAll(".dialect")) {
    label.toggleAttribute("data-off", json);
    label.querySelector("input, select").disabled = json;
  }
  form.elements.delimiter.disabled ||= form.elements.format.value === "tsv";
}

function showCopyButtons() {
  if (!navigator.clipboard) return;
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
}

const updateSoon = debounce(update, 200);

form.addEventListener("input", updateSoon);
form.addEventListener("change", (event) => {
  if (event.target.name?.endsWith(".column")) pickColumn(event.target);
  if (event.target.name?.endsWith(".op")) pickComparison(event.target);
  disableUnusedOptions();
  updateSoon();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const { name, value } = event.submitter ?? {};
  if (name === "move") moveRow(event.submitter, value.endsWith("up"));
  if (name === "remove") removeRow(event.submitter);
  update();
});
form.addEventListener("click", (event) => {
  const { check } = event.target.dataset;
  if (!check) return;
  checkColumns(form, check === "all");
  update();
});
document.addEventListener("click", async (event) => {
  const { copy } = event.target.dataset ?? {};
  if (!copy) return;
  await navigator.clipboard.writeText(document.getElementById(copy).textContent);
  event.target.textContent = "Copied";
  setTimeout(() => (event.target.textContent = "Copy"), 1500);
});

document.querySelector(".apply .button").hidden = true;
form.querySelector(".tools").hidden = false;
watchColumns(form);
offerTimezones(form.elements.timezone);
for (const select of form.querySelectorAll("[name$='.op']")) pickComparison(select);
numberRows(form);
disableUnusedOptions();
showCopyButtons();
form.querySelectorAll(".fault:not([hidden])").forEach(markInvalid);
// Columns chosen before this script ran, or restored by the browser.
const chosen = [...form.querySelectorAll(".new [name$='.column']")].filter((select) => select.value);
chosen.forEach(pickColumn);
if (chosen.length || document.querySelector("[data-retry]")) update();
form.dataset.live = "";
