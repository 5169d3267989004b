// Updates the page of a relation while its form changes. The server reads the same fields as without JavaScript.

import { goToFault, markInvalid } from "./faults.js";
import { fieldsOf, formChanged, isResultButton, maySubmit, networkBack, showTabs, tabChosen, update } from "./result.js";
import { checkColumns, moveRow, numberRows, pickColumn, pickComparison, removeRow, watchColumns } from "./rows.js";
import { offerTimezones } from "./timezones.js";

const form = document.getElementById("shape");

// Disables the options that the chosen format does not have, and shows what the format or "For Excel" sets.
function showOptions() {
  const { format, excel, delimiter } = form.elements;
  const json = format.value === "ndjson";
  for (const label of form.querySelectorAll(".dialect")) {
    label.toggleAttribute("data-off", json);
    for (const input of label.querySelectorAll("input, select")) input.disabled = json;
  }
  delimiter.disabled ||= format.value === "tsv";
  for (const option of form.querySelectorAll("option[data-default]")) {
    const { [format.value]: byFormat, excel: byExcel } = option.dataset;
    option.textContent = byFormat || (excel.checked && byExcel) || option.dataset.default;
  }
}

// Shows the inputs for a column, with what was entered in those of a column not yet chosen.
function pickEarlierColumn(select) {
  const row = select.closest(".row");
  const values = "input[name$='.value']:enabled:not([type=checkbox])";
  const entered = row.querySelector(values)?.value;
  pickColumn(select);
  const input = row.querySelector(values);
  if (input && entered) input.value = entered;
}

form.addEventListener("input", (event) => event.target.form === form && formChanged());
form.addEventListener("change", (event) => {
  if (event.target.form !== form) return;
  if (event.target.name?.endsWith(".column")) pickColumn(event.target);
  if (event.target.name?.endsWith(".op")) pickComparison(event.target);
  showOptions();
  formChanged();
});
form.addEventListener("submit", (event) => {
  const button = event.submitter;
  if (isResultButton(button) && maySubmit(button)) return;
  event.preventDefault();
  if (isResultButton(button)) return;
  if (button?.name === "move") moveRow(button, button.value.endsWith("up"));
  if (button?.name === "remove") removeRow(button);
  formChanged();
});
form.addEventListener("click", (event) => {
  const { check } = event.target.dataset;
  if (!check) return;
  checkColumns(form, check === "all");
  formChanged();
});
document.addEventListener("change", (event) => event.target.form?.id === "view" && tabChosen(event.target));
document.addEventListener("click", async (event) => {
  const { copy } = event.target.dataset ?? {};
  if (copy) {
    await navigator.clipboard.writeText(document.getElementById(copy).textContent);
    event.target.textContent = "Copied";
    setTimeout(() => (event.target.textContent = "Copy"), 1500);
  }
  const slot = document.getElementById(event.target.hash?.slice(1));
  if (!slot?.matches(".fault")) return;
  event.preventDefault();
  goToFault(slot);
});
addEventListener("online", networkBack);
addEventListener("offline", formChanged);

// What a form asks for, without the fields that are left empty.
const wanted = (part) => JSON.stringify([...fieldsOf(part)].filter(([, value]) => value));

const asSent = form.cloneNode(true);
asSent.reset();
const wantedAsSent = wanted(asSent);
document.querySelector(".apply .button").hidden = true;
form.querySelector(".tools").hidden = false;
watchColumns(form);
offerTimezones(form.elements.timezone);
for (const select of form.querySelectorAll("[name$='.op']")) pickComparison(select);
numberRows(form);
showOptions();
showTabs();
form.querySelectorAll(".fault:not([hidden])").forEach(markInvalid);
// Columns chosen before this script ran, or restored by the browser.
[...form.querySelectorAll(".new [name$='.column']")].filter((select) => select.value).forEach(pickEarlierColumn);
if (wanted(form) !== wantedAsSent) formChanged();
else if (document.querySelector("[data-retry]")) update();
form.dataset.live = "";
