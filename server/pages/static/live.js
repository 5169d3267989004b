// Fetches a page of this server and puts parts of it in the place of those shown. A newer wish ends an older one.

let running = new AbortController();

export async function refresh(address, parts, headers = {}) {
  running.abort();
  running = new AbortController();
  const response = await fetch(address, { headers: { Accept: "text/html", ...headers }, signal: running.signal });
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  const focused = document.activeElement?.id;
  for (const id of parts) {
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

// A function that calls the given one when nobody has called it for so many milliseconds.
export function settled(act, milliseconds) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}
