// Fills the list of time zones when its field is first used: the browser's own and UTC first, then all by name.

export function offerTimezones(input) {
  input.addEventListener("focus", () => fill(input), { once: true });
}

async function fill(input) {
  try {
    const response = await fetch("/timezones");
    const { timezones } = await response.json();
    const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const first = [own, "UTC"].filter((zone) => timezones.includes(zone));
    input.list.append(...[...new Set([...first, ...timezones])].map((zone) => new Option(zone)));
  } catch {
    offerTimezones(input); // without an answer, the next use of the field asks again
  }
}
