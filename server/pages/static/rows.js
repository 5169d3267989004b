// The rows of the form: searches and moves columns, adds and removes filters and sort keys. Sends no requests.

// Numbers of the rows added here: above those of the rows that the server sent.
let nextNumber = 1000;

// The value of a column's checkbox and of the buttons that move it is the position of its row.
export function numberRows(form) {
  [...form.querySelectorAll(".columns > li")].forEach((row, number) => {
    row.querySelector("[name=t]").value = number;
    for (const button of row.querySelectorAll("[name=move]")) {
      button.value = `${number}.${button.value.split(".")[1]}`;
    }
  });
}

// Moves a column past the next one that is in sight.
export function moveRow(button, up) {
  const row = button.closest("li");
  const rows = [...row.parentElement.children].filter((each) => !each.hidden);
  const other = rows[rows.indexOf(row) + (up ? -1 : 1)];
  if (up) other?.before(row);
  else other?.after(row);
  numberRows(row.closest("form"));
  button.focus();
}

// Ticks or unticks the columns in sight.
export function checkColumns(form, checked) {
  for (const box of form.querySelectorAll(".columns > li:not([hidden]) [name=t]")) box.checked = checked;
  countColumns(form);
}

export function countColumns(form) {
  const [taken, all] = ["[name=t]:checked", "[name=t]"].map((each) => form.querySelectorAll(each).length);
  const shown = `${taken.toLocaleString("en")} of ${all.toLocaleString("en")}`;
  const count = document.getElementById("taken");
  if (count.textContent !== shown) count.textContent = shown;
}

// Shows only the columns whose name, name in the file or type contains the text of the search.
function searchColumns(form, search) {
  const wanted = search.value.trim().toLowerCase();
  let found = 0;
  for (const row of form.querySelectorAll(".columns > li")) {
    const texts = [row.querySelector("label").textContent, row.querySelector("small").title, row.querySelector("[name=a]").value];
    row.hidden = !texts.some((text) => text.toLowerCase().includes(wanted));
    found += !row.hidden;
  }
  document.getElementById("no-column").hidden = found > 0;
  for (const button of form.querySelectorAll("[data-check]")) {
    button.textContent = (button.dataset.check === "all" ? "All" : "None") + (wanted ? " found" : "");
  }
}

// Counts the ticked columns, and adds the search and the buttons that show the field for the name in the file.
export function watchColumns(form) {
  countColumns(form);
  form.addEventListener("change", () => countColumns(form));
  for (const row of form.querySelectorAll(".columns > li")) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "rename", textContent: "✎" });
    button.setAttribute("aria-label", `Rename ${row.querySelector("[name=c]").value} in the file`);
    row.querySelector(".moves").prepend(button);
  }
  form.addEventListener("click", ({ target }) => {
    if (!target.matches(".rename")) return;
    const row = target.closest("li");
    if (row.classList.toggle("renaming")) row.querySelector("[name=a]").focus();
  });
  const search = document.getElementById("column-search");
  if (!search) return;
  search.hidden = false;
  // The search is no field of the form: it changes nothing of the export.
  for (const name of ["input", "change"]) search.addEventListener(name, (event) => event.stopPropagation());
  search.addEventListener("input", () => searchColumns(form, search));
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") event.preventDefault();
  });
  searchColumns(form, search); // the browser may have restored its text
}

export function removeRow(button) {
  const row = button.closest(".row");
  const next = row.nextElementSibling?.querySelector("select");
  row.remove();
  next?.focus();
}

// Shows the inputs for the column chosen in a filter or a sort key. Choosing one in the last row adds another row.
export function pickColumn(select) {
  const row = select.closest(".row");
  const wasNew = row.classList.contains("new");
  if (!select.value) {
    if (!wasNew) removeRow(row.querySelector(".remove"));
    return;
  }
  if (wasNew) {
    const blank = row.cloneNode(true);
    const [letter, number] = [select.name[0], nextNumber++];
    for (const part of blank.querySelectorAll("[name], [value]")) {
      if (part.name) part.name = part.name.replace(/^[fs]\d+/, `${letter}${number}`);
      if (part.name === "remove") part.value = `${letter}${number}`;
    }
    for (const slot of blank.querySelectorAll(".fault, .note")) {
      slot.id = `${slot.classList.contains("note") ? "note" : "fault"}-${letter}${number}`;
    }
    blank.querySelector("select").selectedIndex = 0;
    row.after(blank);
    row.classList.remove("new");
    select.options[0].textContent = letter === "f" ? "Remove this filter" : "Remove this sort key";
  }
  const role = select.name.startsWith("f") ? "filter on" : "sort by";
  row.setAttribute("aria-label", `${role[0].toUpperCase()}${role.slice(1)} ${select.value}`);
  row.querySelector(".remove").setAttribute("aria-label", `Remove the ${role} ${select.value}`);
  if (!select.name.startsWith("f")) return;
  const kind = select.selectedOptions[0].dataset.control;
  const template = [...document.querySelectorAll("template")].find((each) => each.dataset.control === kind);
  const control = template.content.cloneNode(true);
  const prefix = select.name.split(".")[0];
  for (const part of control.querySelectorAll("[name]")) {
    part.name = part.name.replace("f_", prefix);
    if (part.hasAttribute("aria-describedby")) part.setAttribute("aria-describedby", `note-${prefix}`);
  }
  row.querySelector(".control").replaceChildren(control);
  pickComparison(row.querySelector("[name$='.op']"));
}

// Hides the value for a comparison that needs none, and shows how to write a list for one that takes a list.
export function pickComparison(select) {
  const control = select.closest(".control");
  const { fixed, list } = select.selectedOptions[0].dataset;
  const picker = control.querySelector(".picker");
  const text = control.querySelector("input.value");
  if (picker) showPicker(picker, text, list === undefined);
  const value = picker && !picker.querySelector("input").disabled ? picker : text ?? control.querySelector(".value");
  if (!value) return;
  value.hidden = fixed !== undefined;
  const example = picker ? "2024-01-31, 2024-02-29" : "a, b, c";
  if (text) text.placeholder = list === undefined ? "" : example;
}

// Shows the picker of a date, or the text field for a list and for what no picker can show (infinity). Keeps the value.
function showPicker(picker, text, wanted) {
  const [date, time] = picker.querySelectorAll("input");
  const first = text.value.match(/^\s*(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?))?\s*(?:,|$)/);
  const fits = wanted && (text.disabled || !text.value.trim() || first !== null);
  if (fits && !text.disabled) {
    date.value = first?.[1] ?? "";
    if (time) time.value = first?.[2] ?? "";
  }
  if (!fits && text.disabled) text.value = [date.value, time?.value].filter(Boolean).join("T");
  for (const input of [date, time]) if (input) input.disabled = !fits;
  text.disabled = fits;
  picker.hidden = !fits;
  text.hidden = fits;
}

// Shows the notes at the columns and below the filters that the server sent. A date that is not complete counts as missing.
export function showNotes(fresh) {
  for (const { dataset, textContent } of fresh.querySelectorAll("[data-note]")) {
    const slot = document.getElementById(`note-${dataset.note}`);
    if (!slot) continue;
    const inputs = [...(slot.closest(".row")?.querySelectorAll("input") ?? [])];
    const incomplete = inputs.some((input) => input.validity.badInput);
    slot.textContent = incomplete ? "This filter is not used yet: complete the date or the time." : textContent;
    slot.hidden = !slot.textContent;
  }
}
