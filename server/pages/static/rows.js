// The rows of the form: columns that move, filters and sort keys that come and go. Asks the server nothing.

let nextNumber = 1000;

// A checked column is named by its place in the form, and so are the buttons that move it.
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

export function dropRow(button) {
  const row = button.closest(".row");
  const next = row.nextElementSibling?.querySelector("select");
  row.remove();
  next?.focus();
}

// A column was picked in a filter or a sort key: its comparisons and values, and in the last row a new one after it.
export function pickColumn(select) {
  const row = select.closest(".row");
  const wasNew = row.classList.contains("new");
  if (!select.value) {
    if (!wasNew) dropRow(row.querySelector(".drop"));
    return;
  }
  if (wasNew) {
    const blank = row.cloneNode(true);
    const [letter, number] = [select.name[0], nextNumber++];
    for (const part of blank.querySelectorAll("[name], [value]")) {
      if (part.name) part.name = part.name.replace(/^[fs]\d+/, `${letter}${number}`);
      if (part.name === "drop") part.value = `${letter}${number}`;
    }
    for (const slot of blank.querySelectorAll(".fault")) slot.id = `fault-${letter}${number}`;
    blank.querySelector("select").selectedIndex = 0;
    row.after(blank);
    row.classList.remove("new");
    select.options[0].textContent = letter === "f" ? "Remove this filter" : "Remove this key";
  }
  const what = select.name.startsWith("f") ? "filter on" : "sort by";
  row.setAttribute("aria-label", `${what[0].toUpperCase()}${what.slice(1)} ${select.value}`);
  row.querySelector(".drop").setAttribute("aria-label", `Remove the ${what} ${select.value}`);
  if (!select.name.startsWith("f")) return;
  const wanted = select.selectedOptions[0].dataset.control;
  const template = [...document.querySelectorAll("template")].find((one) => one.dataset.control === wanted);
  const control = template.content.cloneNode(true);
  for (const part of control.querySelectorAll("[name]")) part.name = part.name.replace("f_", select.name.split(".")[0]);
  row.querySelector(".control").replaceChildren(control);
  pickComparison(row.querySelector("[name$='.op']"));
}

// Some comparisons need no value, some take a list.
export function pickComparison(select) {
  const value = select.closest(".control").querySelector(".value");
  if (!value) return;
  const { fixed, many } = select.selectedOptions[0].dataset;
  value.hidden = fixed !== undefined;
  if (value.tagName === "INPUT" && value.type === "text") value.placeholder = many === undefined ? "" : "a, b, c";
}
