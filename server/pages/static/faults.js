// The messages at the fields of the form: shows what the server says of a field, and leads to it. Sends no requests.

const form = document.getElementById("shape");

export function showFault(found) {
  for (const slot of form.querySelectorAll(".fault")) {
    slot.hidden = true;
    delete slot.dataset.old;
    slot.replaceChildren();
  }
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  const field = found.dataset.fault;
  const slot = document.getElementById(`fault-${field}`);
  if (!found.textContent || !slot || (!field && "usable" in found.dataset)) return;
  slot.append(...found.childNodes);
  slot.hidden = false;
  slot.closest("details")?.setAttribute("open", "");
  markInvalid(slot);
}

// PostgreSQL may still refuse a value, which the preview tells. Until then an old message only fades.
export function fadeFaults() {
  for (const slot of form.querySelectorAll(".fault:not([hidden])")) slot.dataset.old = "";
}

export function markInvalid(slot) {
  for (const input of inputsOf(slot)) {
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", slot.id);
  }
}

// Moves the focus to the input that a message is about, or to the message if it is about no single input.
export function goToFault(slot) {
  slot.tabIndex = -1;
  slot.scrollIntoView({ block: "center" });
  (inputsOf(slot)[0] ?? slot).focus({ preventScroll: true });
}

function inputsOf(slot) {
  const field = slot.id.slice("fault-".length);
  const control = form.elements[`${field}.value`] ?? form.elements[`${field}.column`] ?? form.elements[field];
  return control instanceof Element ? [control] : [...(control ?? [])];
}
