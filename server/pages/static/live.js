// Fetches a page of this server and replaces parts of the one shown. A new call aborts the one before.

// Milliseconds: more than the server takes for any of its pages, also while it waits for a lock or for its database.
const LONGEST_WAIT = 20000;

let current = new AbortController();

export async function refresh(address, ids, headers = {}) {
  current.abort();
  const controller = new AbortController();
  current = controller;
  const timer = setTimeout(() => controller.abort(new Error("The server does not answer.")), LONGEST_WAIT);
  const response = await fetch(address, { headers: { Accept: "text/html", ...headers }, signal: controller.signal });
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  clearTimeout(timer);
  const focused = document.activeElement?.id;
  for (const id of ids) {
    const shown = document.getElementById(id);
    const changed = fresh.getElementById(id);
    if (!shown || !changed) continue;
    for (const name of Object.keys(shown.dataset)) delete shown.dataset[name];
    Object.assign(shown.dataset, changed.dataset);
    shown.replaceChildren(...changed.childNodes);
  }
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
  return fresh;
}

// Returns a function that calls the given one after that many milliseconds without another call.
export function debounce(act, milliseconds) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}
