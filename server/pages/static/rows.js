// The rows of the form: moves columns, adds and removes filters and sort keys. Sends no requests.

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

export function moveRow(button, up) {
  const row = button.closest("li");
  if (up) row.previousElementSibling?.before(row);
  else row.nextElementSibling?.after(row);
  numberRows(row.closest("form"));
  button.focus();
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
    for (const slot of blank.querySelectorAll(".fault")) slot.id = `fault-${letter}${number}`;
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
  for (const part of control.querySelectorAll("[name]")) part.name = part.name.replace("f_", select.name.split(".")[0]);
  row.querySelector(".control").replaceChildren(control);
  pickComparison(row.querySelector("[name$='.op']"));
}

// Hides the value for a comparison that needs none, and shows how to write a list for one that takes a list.
export function pickComparison(select) {
  const value = select.closest(".control").querySelector(".value");
  if (!value) return;
  const { fixed, list } = select.selectedOptions[0].dataset;
  value.hidden = fixed !== undefined;
  if (value.tagName === "INPUT" && value.type === "text") value.placeholder = list === undefined ? "" : "a, b, c";
}
